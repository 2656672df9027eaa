package migrations

import (
	"testing"
)

func TestUpTwice(t *testing.T) {
	db := postgres.database(t, "")
	for range 2 {
		if err := Up(t.Context(), postgres.url(db), nil); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Status(t.Context(), postgres.url(db))
	if err != nil || s.Err() != nil {
		t.Fatal(err, s.Err())
	}
	t.Log(s)
}

package auth_test

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/commitcast/commitcast/auth"
	"github.com/commitcast/commitcast/wire"
)

func claims(values map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) { v, ok := values[name]; return v, ok }
}

func TestPatterns(t *testing.T) {
	who := claims(map[string]string{"sub": "7", "tenant": "acme", "evil": "7:admin", "star": "*", "stars": "**", "empty": "", "slash": "a/b",
		"braces": "{sub}", "newline": "a\n", "long": strings.Repeat("x", 129)})
	for _, c := range []struct {
		pattern string
		yes, no []string
	}{
		{"market:42", []string{"market:42"}, []string{"market:4", "market:421", "market", "market:42:x", "market/42", "Market:42", ""}},
		{"market:*", []string{"market:1", "market:a.b_c-d"}, []string{"market:", "market", "market:1:x", "market:1/x", "markets:1", "xmarket:1", "market/1"}},
		{"*", []string{"a"}, []string{"a:b", "a/b", ""}},
		{"**", []string{"a", "a:b/c:d"}, []string{"", "not a topic", "*"}},
		{"a:**", []string{"a:b", "a:b:c/d", "a::"}, []string{"a", "a:", "b:a", "a/b"}},
		{"a:*/c", []string{"a:b/c"}, []string{"a:b:c", "a:/c", "a:b/c/d", "a:b/cc"}},
		{"user:{sub}", []string{"user:7"}, []string{"user:8", "user:", "user:{sub}", "user:7:admin", "user:77"}},
		{"{tenant}/user:{sub}/**", []string{"acme/user:7/x"}, []string{"acme/user:7", "evil/user:7/x", "acme/user:8/x"}},
		// What is not one segment of a topic grants nothing.
		{"user:{evil}", nil, []string{"user:7", "user:7:admin"}},
		{"user:{star}", nil, []string{"user:7", "user:*"}},
		{"user:{stars}", nil, []string{"user:7", "user:7:8"}},
		{"user:{empty}", nil, []string{"user:", "user:7"}},
		{"user:{slash}", nil, []string{"user:a/b", "user:a"}},
		{"user:{braces}", nil, []string{"user:7"}},
		{"user:{newline}", nil, []string{"user:a"}},
		{"user:{nobody}", nil, []string{"user:", "user:nobody"}},
		{"{long}", nil, []string{strings.Repeat("x", 128), strings.Repeat("x", 129)}},
	} {
		p, err := auth.ParsePattern(c.pattern)
		if err != nil {
			t.Errorf("%s: %v", c.pattern, err)
			continue
		}
		id := &auth.Identity{}
		if filled, ok := p.Fill(who); ok {
			id.Topics = []auth.Pattern{{}, filled} // the zero Pattern holds nothing
		}
		for _, topic := range c.yes {
			if err := (auth.Claims{}).Authorize(context.Background(), id, topic); err != nil {
				t.Errorf("%s does not allow %s: %v", c.pattern, topic, err)
			}
		}
		for _, topic := range c.no {
			if err := (auth.Claims{}).Authorize(context.Background(), id, topic); !errors.Is(err, auth.ErrForbidden) {
				t.Errorf("%s allows %s: %v", c.pattern, topic, err)
			}
			if strings.Contains(c.pattern, "{") && p.Match(topic) {
				t.Errorf("%s, not filled, holds %s", c.pattern, topic)
			}
		}
	}
	for _, bad := range []string{"", "a*", "*a", "a:*b", "***", "a:**:b", "**/x", "{", "}", "{}", "a{sub}", "{sub}a", "{a:b}", "{*}", "a b", "a\n", "é",
		"a,b", "a:?", "a:[b]", "a:.*", "^a$", strings.Repeat("a", auth.MaxPattern+1)} {
		if _, err := auth.ParsePattern(bad); err == nil {
			t.Errorf("%q is taken for a pattern", bad)
		}
	}
}

func TestCovers(t *testing.T) {
	for _, c := range []struct {
		p, q string
		want bool
	}{
		{"a", "a", true}, {"a", "b", false}, {"a", "a:b", false}, {"a:*", "a", false}, {"a:*", "a:b", true}, {"a:*", "a:*", true}, {"a:*", "a/*", false},
		{"a:*", "a:**", false}, {"a:**", "a:*", true}, {"a:**", "a:b:c/**", true}, {"a:**", "a", false}, {"a:b", "a:*", false}, {"**", "a", true}, {"**", "**", true},
		{"*", "a", true}, {"*", "a:b", false}, {"a:*", "a:", false}, {"a:**", "a:", false}, {"a:**", "a::", true}, {"a:", "a:", true},
		{"{sub}", "{sub}", false}, {"**", "{sub}", false}, {"{sub}", "a", false},
	} {
		p, err := auth.ParsePattern(c.p)
		if err != nil {
			t.Fatal(err)
		}
		q, err := auth.ParsePattern(c.q)
		if err != nil {
			t.Fatal(err)
		}
		if p.Covers(q) != c.want {
			t.Errorf("%s covers %s: %v", c.p, c.q, !c.want)
		}
	}
	if (auth.Pattern{}).Covers(auth.Pattern{}) {
		t.Error("the zero Pattern covers something")
	}
}

// FuzzCovers: what a covered pattern holds, the one that covers it holds as well.
func FuzzCovers(f *testing.F) {
	for _, seed := range [][3]string{{"a:**", "a:*", "a:b"}, {"a:*", "a:b", "a:b"}, {"**", "a::", "a::"}, {"a:**", "a:", "a:"}} {
		f.Add(seed[0], seed[1], seed[2])
	}
	f.Fuzz(func(t *testing.T, wide, narrow, topic string) {
		p, err := auth.ParsePattern(wide)
		q, other := auth.ParsePattern(narrow)
		if err == nil && other == nil && p.Covers(q) && q.Match(topic) && !p.Match(topic) {
			t.Fatalf("%s covers %s, and does not hold %s", wide, narrow, topic)
		}
	})
}

// FuzzPattern compares patterns with regular expressions that say the same.
func FuzzPattern(f *testing.F) {
	for _, seed := range [][3]string{{"market:*", "market:1", "7"}, {"user:{sub}/**", "user:7/x", "7"}, {"**", "a:b", ""}, {"a:*/c", "a:b/c", "a:b"},
		{"{sub}", "*", "*"}, {"a::*", "a::b", ""}} {
		f.Add(seed[0], seed[1], seed[2])
	}
	f.Fuzz(func(t *testing.T, text, topic, sub string) {
		p, err := auth.ParsePattern(text)
		if err != nil {
			return
		}
		if p.String() != text {
			t.Fatalf("%q became %q", text, p.String())
		}
		filled, ok := p.Fill(claims(map[string]string{"sub": sub}))
		segment := regexp.MustCompile(`^[A-Za-z0-9._-]+$`)
		names := regexp.MustCompile(`\{([^}]*)\}`).FindAllStringSubmatch(text, -1)
		fillable := true
		for _, n := range names {
			fillable = fillable && n[1] == "sub" && segment.MatchString(sub) && !strings.HasSuffix(sub, "\n")
		}
		if ok != fillable {
			t.Fatalf("%q with sub %q: filled %v", text, sub, ok)
		}
		want := false
		if ok && wire.ValidTopic(topic) {
			expr := regexp.QuoteMeta(text)
			expr = strings.ReplaceAll(expr, regexp.QuoteMeta("{sub}"), regexp.QuoteMeta(sub))
			expr = strings.ReplaceAll(expr, regexp.QuoteMeta("**"), ".+")
			expr = strings.ReplaceAll(expr, regexp.QuoteMeta("*"), "[^:/]+")
			want = regexp.MustCompile(`\A` + expr + `\z`).MatchString(topic)
		}
		if got := ok && filled.Match(topic); got != want {
			t.Fatalf("%q with sub %q and topic %q: %v, want %v", text, sub, topic, got, want)
		}
	})
}

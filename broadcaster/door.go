package broadcaster

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/commitcast/commitcast/wire"
)

// door is what every request passes before anything is done for it.
func (b *Broadcaster) door(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if holdsToken(r.URL.RawQuery) {
			problem(w, http.StatusBadRequest, wire.CodeBadRequest, "a token must not be in an address, where logs and histories keep it: "+
				`send it in the frame "auth", or in the header Authorization; take this one out of use`)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// tokenNames are names of parameters that people put tokens in.
var tokenNames = map[string]bool{"token": true, "access_token": true, "id_token": true, "jwt": true, "auth": true,
	"authorization": true, "bearer": true, "api_key": true, "apikey": true}

// holdsToken reports whether a query holds a token, by its name or by its look.
func holdsToken(query string) bool {
	if query == "" {
		return false
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		values = url.Values{"": {query}} // what can be read of it is not all
	}
	for name, list := range values {
		if tokenNames[strings.ToLower(name)] {
			return true
		}
		for _, v := range append(list, name) {
			if i := strings.Index(v, "eyJ"); i >= 0 && strings.Count(v[i:], ".") >= 2 { // the beginning of {" in base64
				return true
			}
		}
	}
	return false
}

// Package token verifies JSON Web Tokens: EdDSA, ES256, RS256 and HS256, with keys from files or from a JWK Set that is read by
// URL.
//
// The algorithms are those of the configuration, never of the token, and each key serves the one algorithm of its type: a public
// key cannot become a shared secret. Audience and expiry are required of every token.
package token

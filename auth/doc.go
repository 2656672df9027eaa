// Package auth says who a client is and which topics it may read.
//
// A [Verifier] turns a token into an [Identity]; package auth/token has the one for JSON Web Tokens. An [Authorizer] decides about one
// topic: [Claims] by the patterns that the token itself holds, [Webhook] by asking a service. Both are interfaces, so that a program which
// embeds a broadcaster can bring its own.
//
// Everything here fails closed: what cannot be decided is not allowed.
package auth

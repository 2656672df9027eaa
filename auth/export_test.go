package auth

import "net/http"

// SetTransport replaces the network of a webhook.
func SetTransport(w *Webhook, t http.RoundTripper) { w.client.Transport = t }

// Remembered is how many decisions a webhook remembers.
func Remembered(w *Webhook) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.known)
}

// Package console is the operators' console in a browser: what package ops says, and its actions, as pages.
//
// It answers, in this order: is it us, where is it stuck, who is affected, what do I do, did it work. Every figure and every action
// is one of package ops; nothing here asks Postgres, Redis or a node by itself. Figures come from looks that all tabs share, and
// carry when they were taken and who did not answer: the pages work with Postgres, Redis or both down. What is live comes through
// Commitcast itself: a tab is a subscriber of a broadcaster that is given to it ([Config.Live]).
//
// Who gets in. A session begins with the token of operators, or with a certificate that the listener has verified, and with a
// name, under which everything is recorded. It is a cookie that scripts cannot read and other sites cannot send. What changes
// something needs the session's second secret, too, which only a page of this origin can read. Pages run nothing and load nothing
// but their own files, and show what comes from data as text.
//
// Handler may be used concurrently. Run owns what goes on in the background, and ends it.
package console

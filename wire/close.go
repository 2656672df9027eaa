package wire

// Error is a refusal that the peer can be told: a code to branch on and a message for people.
type Error struct {
	Code    string
	Message string
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// The codes of op "error". An error answers one request and leaves the connection and its other subscriptions as
// they were.
const (
	CodeBadRequest        = "bad_request"        // not JSON, a wrong type, a missing field
	CodeUnknownOp         = "unknown_op"         // an op this server does not know
	CodeBadTopic          = "bad_topic"          // a topic outside the pattern
	CodeBadCursor         = "bad_cursor"         // after is not a cursor
	CodeAlreadySubscribed = "already_subscribed" // a second subscribe to the same topic
	CodeNotSubscribed     = "not_subscribed"     // unsubscribe without subscribe
	CodeTooMany           = "too_many"           // a limit of this connection is reached
	CodeForbidden         = "forbidden"          // the token does not allow this topic
	CodeUnavailable       = "unavailable"        // the database cannot be asked now; try again
)

// CloseCode is one row of the table of close codes.
type CloseCode struct {
	Code      int
	Reason    string // sent in the close frame; at most 123 bytes
	Reconnect bool   // whether a client should connect again by itself
}

// The close codes. Codes of 4000 and above are Commitcast's own; the others are those of RFC 6455 and its registry.
var (
	CloseShutdown      = CloseCode{1012, "server is shutting down", true}
	CloseOverload      = CloseCode{1013, "server is overloaded", true}
	CloseBinary        = CloseCode{1003, "text messages only", false}
	CloseTooBig        = CloseCode{1009, "message is larger than 8 KiB", false}
	CloseStalled       = CloseCode{4408, "a write made no progress within its deadline", true}
	CloseAuthTimeout   = CloseCode{4400, "no auth within 5 s", true}
	CloseUnauthorized  = CloseCode{4401, "token refused", false}
	CloseTooManyErrors = CloseCode{4429, "too many refused requests", false}
)

// CloseCodes is the whole table, in the order of docs/protocol.md.
var CloseCodes = []CloseCode{
	CloseBinary, CloseTooBig, CloseShutdown, CloseOverload,
	CloseAuthTimeout, CloseUnauthorized, CloseStalled, CloseTooManyErrors,
}

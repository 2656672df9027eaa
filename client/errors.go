package client

import "fmt"

// Kind is what an [Error] is about.
type Kind string

const (
	KindGarbage    Kind = "garbage"    // the server sent something that is not a frame
	KindTopic      Kind = "topic"      // the server sent something of a topic that nobody asked for
	KindSnapshot   Kind = "snapshot"   // it could not be read, or is not one
	KindApply      Kind = "apply"      // Topic.Apply failed
	KindToken      Kind = "token"      // Config.Token failed, or the server refused the token
	KindRefused    Kind = "refused"    // the server refused a request
	KindConnection Kind = "connection" // it ended, cannot be made, or must not be made again
)

// Error is what went wrong. Nothing of it has made a state wrong; unless it is Final, it is being healed already.
type Error struct {
	Kind  Kind
	Topic string // that it is about, if it is about one
	// Final says that trying again will not help until something changes: Run or Follow has ended with it.
	Final bool
	Err   error
}

func (e *Error) Error() string {
	if e.Topic != "" {
		return fmt.Sprintf("client: %s: %s: %v", e.Topic, e.Kind, e.Err)
	}
	return fmt.Sprintf("client: %s: %v", e.Kind, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

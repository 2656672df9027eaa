package broadcaster

import (
	"cmp"
	"slices"

	"github.com/commitcast/commitcast/stream"
)

// An operator who is about to redrive a topic may want to see one client take its events first. So the readers of one subject can
// be told to go ahead of the topic's log: they read on from storage, as if they were behind it, while everybody else waits for the log. When
// it comes to where they are, they go on with it: a cursor ahead of a log is one that the log has nothing for yet.
//
// Nothing else is different. Fences are met in what is replayed, a conflating reader has its window, limits of replays hold, and
// whoever comes back with such a cursor is asked about in the database, which has what was read. What the readers have read
// counts as known to exist (feed.found), so that a database that goes back behind it is noticed. Where a reader joins again, or ends, the
// wish is gone: whoever wished asks again.

// goesAhead reports whether the reader, at a cursor that the log has nothing more for, is to read on from storage.
func (r *reader) goesAhead(cursor int64) bool { return cursor < r.ahead }

// found takes note of what a replay has brought: it exists, even if the log has not heard of it.
func (f *feed) found(h hole, run stream.Run) {
	if h.history == f.history && len(run.Frames) > 0 {
		f.raise(run.Last())
	}
}

// Follower is one subscription of a topic.
type Follower struct {
	Session string `json:"session"`
	Subject string `json:"subject,omitempty"` // of its token
	Address string `json:"address,omitempty"` // the network that limits count it to; "" for this machine
	Live    bool   `json:"live"`              // its cursor has been checked
	Cursor  int64  `json:"cursor"`            // of a live one: everything up to here was given to its socket
	Waiting bool   `json:"waiting"`           // something is being written to it, or about to be
}

// Followers lists the subscriptions of a topic that were made by tokens of a subject, by session, at most limit.
func (b *Broadcaster) Followers(topic, subject string, limit int) []Follower {
	return b.Advance(topic, subject, 0, limit)
}

// Advance has the subscriptions that Followers lists read on from storage up to an offset, ahead of everybody else, and returns where they stood
// before. It does not wait for them. Those that are not live are left as they are; so are those that are that far.
func (b *Broadcaster) Advance(topic, subject string, to int64, limit int) []Follower {
	list := []Follower{}
	t := b.topic(topic)
	if t == nil || subject == "" {
		return list
	}
	t.mu.Lock()
	var subs []*subscription
	for _, sub := range t.subs {
		if sub.subject == subject {
			subs = append(subs, sub)
		}
	}
	t.mu.Unlock()
	slices.SortFunc(subs, func(x, y *subscription) int { return cmp.Compare(x.s.id, y.s.id) })
	for _, sub := range subs[:min(limit, len(subs))] {
		list = append(list, sub.follower(to))
	}
	return list
}

// follower says where a subscription stands, and sends it on to an offset.
func (sub *subscription) follower(to int64) Follower {
	s := sub.s
	s.mu.Lock()
	defer s.mu.Unlock()
	f := sub.followerLocked()
	if f.Live && to > sub.ahead && to > sub.cursor {
		sub.ahead = to
		s.wakeLocked(sub)
	}
	return f
}

// followerLocked says where a subscription stands. Called with the session's mu held.
func (sub *subscription) followerLocked() Follower {
	s := sub.s
	f := Follower{Session: s.id, Subject: sub.subject, Live: sub.state == subLive && sub.epoch == sub.t.shard.Epoch(), Waiting: s.flushing}
	if s.from.IsValid() {
		f.Address = s.from.String()
	}
	if f.Live {
		f.Cursor = sub.cursor
	}
	return f
}

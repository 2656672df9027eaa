package broadcaster

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// State is what a broadcaster knows of itself.
type State struct {
	Node          string `json:"node"`
	Epoch         string `json:"epoch"`           // "" until the database has answered
	Ready         string `json:"ready,omitempty"` // why not; "" if it is
	Push          bool   `json:"push"`            // events are pushed; else the journal is polled
	Polling       bool   `json:"polling"`
	Drained       bool   `json:"drained"` // by an operator: it takes no clients
	Connections   int    `json:"connections"`
	Users         int    `json:"users"` // subjects of tokens that are connected
	Subscriptions int    `json:"subscriptions"`
	Topics        int    `json:"topics"` // with a log in memory
	Slow          int    `json:"slow"`   // clients that have not taken a message for a second or more, as last looked
	Behind        int    `json:"behind"` // topics whose log lacks events that are known to exist
	Tokens        Tokens `json:"tokens"`

	Shards []ShardState `json:"shards,omitempty"` // where there are several databases: each of them
}

// ShardState is one of several databases.
type ShardState struct {
	Topics string `json:"topics"` // the patterns of those that it holds; "**" for those that no other does
	Epoch  string `json:"epoch"`  // "" until it has answered
	Up     bool   `json:"up"`     // it has answered the last time
}

// Away are the topics, as patterns, whose databases do not answer while others do.
func (s *State) Away() (topics []string) {
	for _, sh := range s.Shards {
		if !sh.Up {
			topics = append(topics, sh.Topics)
		}
	}
	if len(topics) == len(s.Shards) {
		return nil
	}
	return topics
}

// In reports whether one of the databases is in an epoch.
func (s *State) In(epoch string) bool {
	return s.Epoch == epoch || slices.ContainsFunc(s.Shards, func(sh ShardState) bool { return sh.Epoch == epoch })
}

// Tokens is what became of tokens in the last minute.
type Tokens struct {
	Accepted    int `json:"accepted"`
	Refused     int `json:"refused"`
	Unavailable int `json:"unavailable"` // could not be checked
	Expired     int `json:"expired"`     // sessions that ended since no newer one came in time
}

// tokensLately counts for Tokens.
type tokensLately struct{ accepted, refused, unavailable, expired lately }

// of is the count of an outcome of a check; nil of those that are not told.
func (t *tokensLately) of(outcome string) *lately {
	return map[string]*lately{"accepted": &t.accepted, "refused": &t.refused, "unavailable": &t.unavailable}[outcome]
}

func (t *tokensLately) sum() Tokens {
	now := time.Now()
	return Tokens{t.accepted.sum(now), t.refused.sum(now), t.unavailable.sum(now), t.expired.sum(now)}
}

// State counts. It looks at every topic, and is for people who ask, not for a loop.
func (b *Broadcaster) State() State {
	s := State{Node: b.cfg.Node, Epoch: b.Epoch(), Push: b.pushUp.Load(), Polling: b.polling(), Tokens: b.tokens.sum()}
	if err := b.Ready(); err != nil {
		s.Ready = err.Error()
	}
	if len(b.shards) > 1 {
		for _, sh := range b.shards {
			s.Shards = append(s.Shards, ShardState{Topics: sh.name, Epoch: sh.Epoch(), Up: sh.up.Load()})
		}
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	s.Drained, s.Connections, s.Topics, s.Slow = b.held, len(b.sessions), len(b.topics), int(b.slow.Load())
	for _, u := range b.users {
		if u.connections > 0 {
			s.Users++
		}
	}
	for _, t := range b.topics {
		t.mu.Lock()
		s.Subscriptions += len(t.subs)
		if len(t.subs) > 0 && t.lags() {
			s.Behind++
		}
		t.mu.Unlock()
	}
	return s
}

// Held reports whether an operator has drained this node.
func (b *Broadcaster) Held() bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.held
}

// ClientState is one connection.
type ClientState struct {
	Session       string    `json:"session"`
	Subject       string    `json:"subject,omitempty"` // of its token
	Address       string    `json:"address,omitempty"` // the network that limits count it to; "" for this machine
	Since         time.Time `json:"since"`
	Subscriptions int       `json:"subscriptions"`
	Behind        int64     `json:"behind"`  // events that it has yet to be sent, all subscriptions together
	Waiting       bool      `json:"waiting"` // something is being written to it, or about to be
	Slow          bool      `json:"slow"`    // it has not taken that for a second or more
}

// Clients lists connections by session, after one; at most limit. subject, if not "", chooses those of one.
func (b *Broadcaster) Clients(subject, after string, limit int) []ClientState {
	b.mu.RLock()
	var sessions []*session
	for s := range b.sessions {
		if s.id > after && (subject == "" || s.user == subject) {
			sessions = append(sessions, s)
		}
	}
	b.mu.RUnlock()
	slices.SortFunc(sessions, func(x, y *session) int { return cmp.Compare(x.id, y.id) })
	list := make([]ClientState, 0, min(limit, len(sessions)))
	for _, s := range sessions[:min(limit, len(sessions))] {
		list = append(list, s.clientState())
	}
	return list
}

// ClientsBehind lists the connections that are furthest behind, at most limit, and none that has been sent everything. It looks at
// every subscription.
func (b *Broadcaster) ClientsBehind(limit int) []ClientState {
	b.mu.RLock()
	sessions := slices.Collect(maps.Keys(b.sessions))
	b.mu.RUnlock()
	list := []ClientState{}
	for _, s := range sessions {
		if c := s.clientState(); c.Behind > 0 {
			list = append(list, c)
		}
	}
	slices.SortFunc(list, func(x, y ClientState) int {
		return cmp.Or(cmp.Compare(y.Behind, x.Behind), cmp.Compare(x.Session, y.Session))
	})
	return list[:min(limit, len(list))]
}

func (s *session) clientState() ClientState {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := ClientState{Session: s.id, Since: s.came, Subscriptions: len(s.subs), Waiting: s.flushing, Slow: s.isSlow(time.Now())}
	if s.who != nil {
		c.Subject = s.who.Subject
	}
	if s.from.IsValid() {
		c.Address = s.from.String()
	}
	for _, sub := range s.subs {
		if sub.state == subLive && sub.epoch == sub.t.shard.Epoch() {
			c.Behind += max(0, sub.t.head()-sub.cursor)
		}
	}
	return c
}

// TopicState is one topic that this node has in memory.
type TopicState struct {
	Topic       string `json:"topic"`
	Epoch       string `json:"epoch"`
	Head        int64  `json:"head"`  // the newest offset known to exist
	First       int64  `json:"first"` // of the log; above Last if it is empty
	Last        int64  `json:"last"`
	Confirmed   bool   `json:"confirmed"` // events of it are pushed
	Subscribers int    `json:"subscribers"`
	Joining     int    `json:"joining"` // of these, not yet live
	Behind      int    `json:"behind"`  // of the live ones, not yet sent everything
	// Laggards are those that are furthest behind, at most 10, the last first.
	Laggards []Follower `json:"laggards,omitempty"`
	Slowest  int64      `json:"slowest"` // the lowest offset up to which a live one was sent everything; Head if there is none
}

// laggards is how many that are behind a topic are named: enough to see what they have in common.
const laggards = 10

// Topics lists topics that follow after in the order of their names, at most limit.
func (b *Broadcaster) Topics(after string, limit int) []TopicState {
	b.mu.RLock()
	var names []string
	for name := range b.topics {
		if name > after {
			names = append(names, name)
		}
	}
	b.mu.RUnlock()
	slices.Sort(names)
	list := make([]TopicState, 0, min(limit, len(names)))
	for _, name := range names[:min(limit, len(names))] {
		if s, ok := b.Topic(name); ok {
			list = append(list, s)
		}
	}
	return list
}

// Topic is the state of one topic; false if this node has nothing of it.
func (b *Broadcaster) Topic(name string) (TopicState, bool) {
	t := b.topic(name)
	if t == nil {
		return TopicState{}, false
	}
	t.mu.Lock()
	s := TopicState{Topic: name, Epoch: t.channel.Epoch, Head: t.head(), Confirmed: t.confirmed, Subscribers: len(t.subs)}
	s.Slowest = s.Head
	t.log.mu.RLock()
	s.First, s.Last = t.log.first, t.log.next-1
	t.log.mu.RUnlock()
	var behind []Follower
	for _, sub := range t.subs {
		sub.s.mu.Lock()
		switch {
		case sub.state != subLive || sub.epoch != s.Epoch:
			s.Joining++
		case sub.cursor < s.Head:
			s.Behind++
			s.Slowest = min(s.Slowest, sub.cursor)
			behind = append(behind, sub.followerLocked())
		}
		sub.s.mu.Unlock()
	}
	t.mu.Unlock()
	slices.SortFunc(behind, func(x, y Follower) int {
		return cmp.Or(cmp.Compare(x.Cursor, y.Cursor), cmp.Compare(x.Session, y.Session))
	})
	s.Laggards = behind[:min(laggards, len(behind))]
	return s, true
}

// Hold drains this node for an operator: it takes no more clients, tells those that it has when to come back, and closes them
// over Config.Drain. It returns how many these were, and returns when they are closed. The node stays so until Release.
func (b *Broadcaster) Hold() int {
	b.mu.Lock()
	b.held = true
	b.mu.Unlock()
	return b.sendAway(func(*session) bool { return true })
}

// Release ends Hold. False: the node was not drained.
func (b *Broadcaster) Release() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	was := b.held
	b.held = false
	return was
}

// Disconnect closes the connections of the subject of a token, and returns how many there were. They are told to come back:
// this is no ban.
func (b *Broadcaster) Disconnect(subject string) int {
	return b.sendAway(func(s *session) bool { return s.user == subject })
}

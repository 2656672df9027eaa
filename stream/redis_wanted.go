package stream

import (
	"context"
	"sync"
)

const (
	// subscribeBatch is how many channels one SSUBSCRIBE names: Redis serves nobody else while it answers one.
	subscribeBatch = 256
	// maxUnanswered is how many channels may be asked for and not answered yet. An answer is about 200 bytes; the
	// output buffer of a subscriber is cut at 32 MB, or at 8 MB if it stays there.
	maxUnanswered = 8_192
)

// wantedSet is what a subscription should listen to, and how far Redis was told. Add and Remove change what is wanted;
// the writer asks next what to write; the reader reports the answers.
type wantedSet struct {
	wake  chan struct{} // a hint for the writer
	first chan struct{} // closed when the first channel is wanted

	mu         sync.Mutex
	any        bool // first is closed
	channels   map[string]*wantedChannel
	online     bool
	dirty      []*wantedChannel // what the writer must look at, each once
	unanswered int
	confirming *wantedChannel // the handler is being told about it right now
}

// wantedChannel is one channel. Redis answers each SSUBSCRIBE and SUNSUBSCRIBE in order, so counting what is unanswered
// tells which answer belongs to the newest question.
type wantedChannel struct {
	ch        Channel
	key       string
	wanted    bool
	ask       bool // added, and SSUBSCRIBE not written since
	asked     bool // SSUBSCRIBE was written last, not SUNSUBSCRIBE
	subs      int  // SSUBSCRIBEs unanswered
	unsubs    int  // SUNSUBSCRIBEs unanswered
	confirmed bool // the handler was told, and may be given messages
	dirty     bool // is in the list, or will be put there when the handler has been told
}

func newWantedSet() *wantedSet {
	return &wantedSet{wake: make(chan struct{}, 1), first: make(chan struct{}), channels: make(map[string]*wantedChannel)}
}

// awaitFirst waits until a channel is wanted; false if ctx ended.
func (s *wantedSet) awaitFirst(ctx context.Context) bool {
	select {
	case <-s.first:
		return true
	case <-ctx.Done():
		return false
	}
}

func (s *wantedSet) add(chs []Channel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.any && len(chs) > 0 {
		s.any = true
		close(s.first)
	}
	for _, ch := range chs {
		key := ch.key()
		c := s.channels[key]
		if c == nil {
			c = &wantedChannel{ch: ch, key: key}
			s.channels[key] = c
		}
		if !c.wanted {
			c.wanted, c.ask = true, true
			s.mark(c)
		}
	}
}

func (s *wantedSet) remove(chs []Channel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ch := range chs {
		if c := s.channels[ch.key()]; c != nil && c.wanted {
			c.wanted, c.ask, c.confirmed = false, false, false
			s.mark(c)
			s.drop(c)
		}
	}
}

// mark has the writer look at c. Without a connection there is nothing to write.
func (s *wantedSet) mark(c *wantedChannel) {
	if !s.online || c.dirty {
		return
	}
	c.dirty = true
	s.dirty = append(s.dirty, c)
	s.wakeWriter()
}

func (s *wantedSet) wakeWriter() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// drop forgets c if nothing is left to say or hear about it.
func (s *wantedSet) drop(c *wantedChannel) {
	if !c.wanted && !c.asked && !c.dirty && c.subs == 0 && c.unsubs == 0 && s.channels[c.key] == c {
		delete(s.channels, c.key)
	}
}

// connected begins with a connection on which nothing was asked yet.
func (s *wantedSet) connected() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.online = true
	for _, c := range s.channels {
		s.mark(c)
	}
}

// disconnected forgets what was asked and confirmed.
func (s *wantedSet) disconnected() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.online, s.dirty, s.unanswered, s.confirming = false, nil, 0, nil
	for key, c := range s.channels {
		if !c.wanted {
			delete(s.channels, key)
			continue
		}
		*c = wantedChannel{ch: c.ch, key: key, wanted: true, ask: true}
	}
}

// next appends the commands to write now: one batch at most. Nothing is appended when there is nothing to do, or when
// too much is unanswered.
func (s *wantedSet) next(out []byte) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	sub, unsub := []string{"SSUBSCRIBE"}, []string{"SUNSUBSCRIBE"}
	n := 0
	for ; n < len(s.dirty) && s.unanswered < maxUnanswered && len(sub) <= subscribeBatch && len(unsub) <= subscribeBatch; n++ {
		c := s.dirty[n]
		switch {
		case !c.wanted && c == s.confirming:
			// The handler is being told that it is live, and must not be told a lie if it is added again meanwhile:
			// confirmed() puts it back into the list.
			continue
		case c.wanted && c.ask:
			sub = append(sub, c.key)
			c.ask, c.asked = false, true
			c.subs++
			s.unanswered++
		case !c.wanted && c.asked:
			unsub = append(unsub, c.key)
			c.asked = false
			c.unsubs++
			s.unanswered++
		}
		c.dirty = false
		s.drop(c)
	}
	clear(s.dirty[:n])
	s.dirty = s.dirty[n:]
	if len(unsub) > 1 {
		out = appendCommand(out, unsub...)
	}
	if len(sub) > 1 {
		out = appendCommand(out, sub...)
	}
	return out
}

// answered counts one answer and lets the writer go on when there is room again.
func (s *wantedSet) answered() {
	s.unanswered--
	if s.unanswered == maxUnanswered/2 && len(s.dirty) > 0 {
		s.wakeWriter()
	}
}

// subscribed takes the answer to an SSUBSCRIBE. ok says that the handler must be told, and then confirmed called: the
// channel is wanted, and this was the last question about it.
func (s *wantedSet) subscribed(key string) (ch Channel, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.channels[key]
	if c == nil || c.subs == 0 {
		return Channel{}, false
	}
	c.subs--
	s.answered()
	if c.wanted && c.asked && !c.ask && c.subs == 0 {
		s.confirming = c
		return c.ch, true
	}
	s.drop(c)
	return Channel{}, false
}

// confirmed says that the handler was told. If the channel was removed and added again meanwhile, it has been live
// without a break, since next held its SUNSUBSCRIBE back.
func (s *wantedSet) confirmed(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.confirming
	s.confirming = nil
	if c == nil || c.key != key {
		return
	}
	c.confirmed = c.wanted
	if c.dirty {
		c.dirty = false
		s.mark(c)
	}
}

// unsubscribed takes an sunsubscribe. It is false if nobody asked for it and the channel is wanted.
func (s *wantedSet) unsubscribed(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.channels[key]
	if c == nil {
		return true
	}
	if c.unsubs == 0 {
		return !c.asked
	}
	c.unsubs--
	s.answered()
	s.drop(c)
	return true
}

// get is the channel of a key, and whether it is wanted and confirmed.
func (s *wantedSet) get(key string) (Channel, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.channels[key]
	if c == nil || !c.wanted || !c.confirmed {
		return Channel{}, false
	}
	return c.ch, true
}

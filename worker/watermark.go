package worker

// watermark says up to which seq a partition is published without a hole, in one epoch.
//
// Topics are answered apart from each other, so confirmations come out of order in terms of seq; within a topic they
// come in order. It therefore keeps one number for each topic that has unconfirmed events: the lowest seq that may be
// unconfirmed. That bounds it by the number of topics, not of events, however long one topic is refused.
type watermark struct {
	epoch string
	taken int64            // every seq up to here was taken over from the journal
	open  map[string]int64 // topic → lowest seq of it that may be unconfirmed
}

// reset begins an epoch, or begins again in one: everything up to base is published, nothing else is known.
func (w *watermark) reset(epoch string, base int64) {
	w.epoch, w.taken = epoch, base
	w.open = make(map[string]int64)
}

// offer notes that events of topic, the first of them with seq, are about to be offered. take must follow before the
// watermark is read.
func (w *watermark) offer(topic string, seq int64) {
	if first, ok := w.open[topic]; !ok || seq < first {
		w.open[topic] = seq
	}
}

// take notes that every event up to seq has been passed to offer.
func (w *watermark) take(seq int64) { w.taken = max(w.taken, seq) }

// confirm notes that every event of topic before seq is published.
func (w *watermark) confirm(topic string, seq int64) {
	if first, ok := w.open[topic]; ok && seq > first {
		w.open[topic] = seq
	}
}

// settle notes that every event of topic that was offered is published.
func (w *watermark) settle(topic string) { delete(w.open, topic) }

// published is the highest s for which every event up to s is published.
func (w *watermark) published() int64 {
	s := w.taken
	for _, first := range w.open {
		s = min(s, first-1)
	}
	return s
}

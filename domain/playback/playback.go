// Package playback is what a player plays next: the rules of the priorities, without a clock and without a sound. The reference player and the simulated
// ones share it.
//
//   - urgent interrupts what plays, which resumes where it was when everything urgent is over;
//   - high is next after what plays now (and after what was interrupted);
//   - normal joins the queue;
//   - low waits until nothing else is queued.
//
// Within a priority the order is that of arrival.
package playback

import "slices"

// Priority is how soon something plays.
type Priority int

// The priorities in rising order.
const (
	Low Priority = iota
	Normal
	High
	Urgent
)

// ParsePriority reads a priority by its name; ok is false for anything else.
func ParsePriority(name string) (p Priority, ok bool) {
	i := slices.Index([]string{"low", "normal", "high", "urgent"}, name)
	return Priority(max(i, 0)), i >= 0
}

// Item is something to play.
type Item struct {
	ID       string
	Priority Priority
}

// Queue decides what plays. The zero Queue is empty and ready. It is not safe for concurrent use.
type Queue struct {
	waiting     [Urgent + 1][]Item
	current     *Item
	interrupted []Item // the last one first to resume
}

// Add takes an item into the queue. One that is there already is not taken twice; added is false then.
func (q *Queue) Add(item Item) (added bool) {
	if q.Has(item.ID) {
		return false
	}
	q.waiting[item.Priority] = append(q.waiting[item.Priority], item)
	q.settle()
	return true
}

// Current is what should play now.
func (q *Queue) Current() (item Item, ok bool) {
	if q.current == nil {
		return Item{}, false
	}
	return *q.current, true
}

// Finish says that what plays has ended; the next is Current then.
func (q *Queue) Finish() {
	q.current = nil
	q.settle()
}

// Remove takes an item out, wherever it is; removed is false if it is nowhere.
func (q *Queue) Remove(id string) (removed bool) {
	is := func(i Item) bool { return i.ID == id }
	before := q.Len()
	for p := range q.waiting {
		q.waiting[p] = slices.DeleteFunc(q.waiting[p], is)
	}
	q.interrupted = slices.DeleteFunc(q.interrupted, is)
	if q.current != nil && is(*q.current) {
		q.current = nil
	}
	removed = q.Len() < before
	q.settle()
	return removed
}

// Has reports whether an item plays, waits or was interrupted.
func (q *Queue) Has(id string) bool {
	is := func(i Item) bool { return i.ID == id }
	for _, waiting := range q.waiting {
		if slices.ContainsFunc(waiting, is) {
			return true
		}
	}
	return slices.ContainsFunc(q.interrupted, is) || q.current != nil && is(*q.current)
}

// Len is how many items there are, the one that plays included.
func (q *Queue) Len() int {
	n := len(q.interrupted)
	for _, waiting := range q.waiting {
		n += len(waiting)
	}
	if q.current != nil {
		n++
	}
	return n
}

// settle makes current what should play now.
func (q *Queue) settle() {
	if q.current != nil {
		if q.current.Priority < Urgent && len(q.waiting[Urgent]) > 0 {
			q.interrupted = append(q.interrupted, *q.current)
			q.current = nil
		} else {
			return
		}
	}
	switch {
	case len(q.waiting[Urgent]) > 0:
		q.take(Urgent)
	case len(q.interrupted) > 0:
		last := q.interrupted[len(q.interrupted)-1]
		q.interrupted = q.interrupted[:len(q.interrupted)-1]
		q.current = &last
	case len(q.waiting[High]) > 0:
		q.take(High)
	case len(q.waiting[Normal]) > 0:
		q.take(Normal)
	case len(q.waiting[Low]) > 0:
		q.take(Low)
	}
}

func (q *Queue) take(p Priority) {
	first := q.waiting[p][0]
	q.waiting[p] = q.waiting[p][1:]
	q.current = &first
}

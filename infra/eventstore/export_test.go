package eventstore

// KeepInFeed sets how much the feed keeps, before anyone has joined it.
func (s *Store) KeepInFeed(bytes int) { s.feedBytes = bytes }

// Following is how many subscriptions share the feed.
func (s *Store) Following() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.feed == nil {
		return 0
	}
	return s.feed.followers
}

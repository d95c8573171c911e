package httpgate

import "time"

// SetKeyClock gives the idempotency keys another clock; before the first
// request with a key.
func (s *Server) SetKeyClock(now func() time.Time) { s.keys.now = now }

// RememberedKeys is how many idempotency keys are in memory.
func (s *Server) RememberedKeys() int {
	s.keys.mu.Lock()
	l := s.keys.log
	s.keys.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.index)
}

// RoutePatterns lists the table of routes: METHOD and path.
func RoutePatterns() (all []string) {
	for _, r := range (&Server{}).routes() {
		all = append(all, r.pattern)
	}
	return all
}

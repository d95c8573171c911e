package s3

import "sync"

// pages remembers where the store cut its latest lists, so that the page behind one is asked for with the store's own
// token: MinIO may lose keys that it is to find behind a key of ours. A token that was forgotten is no harm elsewhere. The
// zero value is empty; it may be used from several goroutines.
type pages struct {
	mu     sync.Mutex
	tokens map[page]string
	order  []page // from the oldest
}

// page is what comes behind a key among those of a prefix.
type page struct{ prefix, after string }

// keptPages is how many lists may be under way at the same time.
const keptPages = 64

// token returns that of the store for the page, "" if there is none.
func (p *pages) token(of page) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tokens[of]
}

// keep notes the token of a page, and forgets the oldest.
func (p *pages) keep(of page, token string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tokens == nil {
		p.tokens = map[page]string{}
	}
	if _, ok := p.tokens[of]; !ok {
		if len(p.order) == keptPages {
			delete(p.tokens, p.order[0])
			p.order = append(p.order[:0], p.order[1:]...)
		}
		p.order = append(p.order, of)
	}
	p.tokens[of] = token
}

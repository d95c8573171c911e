// Package lock has a mutex for what is held while something else answers.
package lock

import (
	"sync"
	"sync/atomic"
)

// Mutex is a sync.Mutex whose waiters are seen to be idle by testing/synctest: time goes on
// in a simulation while they wait. It is for critical sections that wait for room, a bucket or
// a store; others take a sync.Mutex. Who comes may take it before those who wait, until one
// of them has waited in vain a few times. The zero value is unlocked.
type Mutex struct {
	held     atomic.Bool
	waiting  atomic.Int32
	starving atomic.Int32 // waiters that were woken in vain too often
	mu       sync.Mutex
	cond     sync.Cond
	handed   bool // held, and given to whichever waiter sees it first
}

// patience is how often a waiter is woken in vain before the mutex is handed over.
const patience = 8

// Lock waits until the mutex is free and takes it.
func (m *Mutex) Lock() {
	if m.held.CompareAndSwap(false, true) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cond.L = &m.mu
	m.waiting.Add(1)
	waits := 0
	for (!m.handed || waits == 0) && !m.held.CompareAndSwap(false, true) { // after the counting, which Unlock looks at
		if waits == patience {
			m.starving.Add(1)
		}
		waits++
		m.cond.Wait()
	}
	m.handed = false
	m.waiting.Add(-1)
	if waits > patience {
		m.starving.Add(-1)
	}
}

// TryLock takes the mutex if it is free.
func (m *Mutex) TryLock() bool { return m.held.CompareAndSwap(false, true) }

// Unlock gives the mutex back; it must be held.
func (m *Mutex) Unlock() {
	if m.starving.Load() > 0 && m.hand() {
		return
	}
	if !m.held.CompareAndSwap(true, false) {
		panic("lock: Unlock of an unlocked Mutex")
	}
	if m.waiting.Load() > 0 {
		m.mu.Lock() // a waiter that was counted waits by now, or has the mutex
		m.cond.Signal()
		m.mu.Unlock()
	}
}

// hand leaves the mutex held, for a waiter; false: nobody waits any more.
func (m *Mutex) hand() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.waiting.Load() == 0 {
		return false
	}
	m.handed = true
	m.cond.Signal()
	return true
}

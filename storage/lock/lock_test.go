package lock

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestMutex(t *testing.T) {
	var m Mutex
	var wg sync.WaitGroup
	n := 0
	const workers, each = 8, 5000
	for range workers {
		wg.Go(func() {
			for range each {
				m.Lock()
				n++
				m.Unlock()
			}
		})
	}
	wg.Wait()
	if n != workers*each {
		t.Errorf("%d, want %d", n, workers*each)
	}
}

// Time goes on while one sleeps with the mutex and others wait for it.
func TestMutexInBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m Mutex
		var wg sync.WaitGroup
		began := time.Now()
		for range 5 {
			wg.Go(func() {
				m.Lock()
				defer m.Unlock()
				time.Sleep(time.Minute)
			})
		}
		wg.Wait()
		if d := time.Since(began); d != 5*time.Minute {
			t.Errorf("took %v", d)
		}
	})
}

// Who takes the mutex again at once does not keep it from those who wait.
func TestMutexWaitersHaveTheirTurn(t *testing.T) {
	var m Mutex
	var stop atomic.Bool
	var wg sync.WaitGroup
	begun := make(chan struct{})
	wg.Go(func() {
		for first := true; !stop.Load(); first = false {
			m.Lock()
			if first {
				close(begun)
			}
			runtime.Gosched() // somebody begins to wait
			m.Unlock()
		}
	})
	<-begun
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 100 {
			m.Lock()
			m.Unlock()
		}
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Error("a waiter never gets the mutex")
	}
	stop.Store(true)
	wg.Wait()
}

func TestUnlockOfUnlocked(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	var m Mutex
	m.Unlock()
}

func BenchmarkMutex(b *testing.B) {
	b.Run("lock", func(b *testing.B) {
		var m Mutex
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				m.Lock()
				m.Unlock()
			}
		})
	})
	b.Run("sync", func(b *testing.B) {
		var m sync.Mutex
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				m.Lock()
				m.Unlock()
			}
		})
	})
}

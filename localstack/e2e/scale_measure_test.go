package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// scaleTable collects figures: a row for each thing measured, a column for
// each server and shape.
type scaleTable struct {
	columns []string
	rows    []string
	cells   map[[2]string]string
}

func (s *scaleTable) set(column, row, format string, args ...any) {
	if s.cells == nil {
		s.cells = map[[2]string]string{}
	}
	known := false
	for _, r := range s.rows {
		known = known || r == row
	}
	if !known {
		s.rows = append(s.rows, row)
	}
	s.cells[[2]string{column, row}] = fmt.Sprintf(format, args...)
}

// String is the table as markdown.
func (s *scaleTable) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "| | %s |\n|---|%s\n", strings.Join(s.columns, " | "), strings.Repeat("---|", len(s.columns)))
	for _, r := range s.rows {
		fmt.Fprintf(&b, "| %s |", r)
		for _, c := range s.columns {
			v := s.cells[[2]string{c, r}]
			if v == "" {
				v = "-"
			}
			fmt.Fprintf(&b, " %s |", v)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// measuring is one column.
type measuring struct {
	t      *testing.T
	s      scaleServer
	node   *Node // nil for another server
	table  *scaleTable
	column string
	topics []string
	each   int32
	idle   time.Duration

	k      *rawKafka
	places []place
	base   time.Duration // CPU at the last mark
	at     time.Time     // of the last mark
}

func (m *measuring) check(what string, err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatalf("%s: %s: %v", m.column, what, err)
	}
}

func (m *measuring) set(row, format string, args ...any) {
	m.t.Logf("%s: %s: %s", m.column, row, fmt.Sprintf(format, args...))
	m.table.set(m.column, row, format, args...)
}

// mark begins an interval, spent tells time and CPU of the server since then.
func (m *measuring) mark() { m.base, m.at = cpu(m.s.pid()), time.Now() }

func (m *measuring) spent() (took, used time.Duration) {
	return time.Since(m.at), cpu(m.s.pid()) - m.base
}

func ms(d time.Duration) string {
	switch {
	case d >= 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d >= 10*time.Millisecond:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d >= time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
	}
	return fmt.Sprintf("%d us", d.Microseconds())
}

func bytesOf(n int) string {
	switch {
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 10<<10:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d B", n)
}

// start starts the server and tells the time until all partitions have a
// leader, and until one more record is acknowledged.
func (m *measuring) start(row string) {
	m.t.Helper()
	began := time.Now()
	m.check("launch", m.s.launch())
	end := began.Add(5 * time.Minute)
	for {
		k, err := dialKafka(m.s.addr())
		if err == nil {
			if m.topics == nil {
				_, _, err = k.metadata("")
			} else {
				m.places, err = k.places(m.topics, m.each)
			}
		}
		if err == nil {
			m.k = k
			break
		}
		if k != nil {
			k.close()
		}
		if time.Now().After(end) {
			m.check(row, err)
		}
		time.Sleep(time.Millisecond)
	}
	known := time.Since(began)
	if m.topics == nil {
		m.set(row, "%s", ms(known))
		return
	}
	var err error
	for {
		if err = m.k.produce(m.places[:1], oneRecord(m.t)); err == nil || time.Now().After(end) {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	m.check("first record", err)
	m.set(row, "%s / %s", ms(known), ms(time.Since(began)))
}

// restart ends the server and starts it again.
func (m *measuring) restart(row string, end func()) {
	m.k.close()
	began := time.Now()
	end()
	m.t.Logf("%s: ended in %s", m.column, ms(time.Since(began)))
	m.start(row)
	m.memory(row + ": RSS anon / file")
}

func (m *measuring) memory(row string) {
	pid := m.s.pid()
	m.set(row, "%d / %d MiB", procStatus(pid, "RssAnon")>>10, procStatus(pid, "RssFile")>>10)
}

func (m *measuring) counts(row string) {
	pid := m.s.pid()
	if m.node == nil {
		m.set(row, "%d / %d / -", fds(pid), procStatus(pid, "Threads"))
		return
	}
	m.set(row, "%d / %d / %d", fds(pid), procStatus(pid, "Threads"), m.node.goroutines())
}

func (m *measuring) idling(row string) {
	time.Sleep(2 * time.Second)
	m.mark()
	time.Sleep(m.idle)
	took, used := m.spent()
	m.set(row, "%.2f %%", 100*used.Seconds()/took.Seconds())
}

// create makes the topics, one request for each.
func (m *measuring) create() {
	m.mark()
	for _, t := range m.topics {
		m.check("create "+t, m.k.newTopic(t, m.each))
	}
	eventually(m.t, 5*time.Minute, "leaders", func() bool {
		var err error
		m.places, err = m.k.places(m.topics, m.each)
		return err == nil
	})
	took, used := m.spent()
	m.set("create: time / CPU", "%s / %s", ms(took), ms(used))
}

func (m *measuring) metadataAnswers() {
	for _, w := range []struct{ row, topic string }{{"Metadata of all topics: time / CPU / bytes", ""}, {"Metadata of one topic: time / CPU / bytes", m.topics[0]}} {
		const times = 5
		n := 0
		m.mark()
		for range times {
			var err error
			_, n, err = m.k.metadata(w.topic)
			m.check(w.row, err)
		}
		took, used := m.spent()
		m.set(w.row, "%s / %s / %s", ms(took/times), ms(used/times), bytesOf(n))
	}
}

// sessionPlaces bounds the partitions of the fetch session.
const sessionPlaces = 10_000

// fetching measures a session over up to 10,000 partitions that are empty but
// for the first.
func (m *measuring) fetching() {
	places := m.places[:min(len(m.places), sessionPlaces)]
	k, err := dialKafka(m.s.addr())
	m.check("dial", err)
	defer k.close()
	m.mark()
	s, r, n, err := k.open(places, 0)
	m.check("full fetch", err)
	_, _, err = s.poll(places[:1], 1, 0) // a start has written to it
	m.check("catch up", err)
	took, used := m.spent()
	all, _ := rows(r)
	if all != len(places) {
		m.t.Errorf("%s: a full fetch of %d partitions tells of %d", m.column, len(places), all)
	}
	m.set("fetch session of 10,000, full: time / CPU / bytes", "%s / %s / %s", ms(took), ms(used), bytesOf(n))
	const polls = 200
	m.mark()
	for range polls {
		_, n, err = s.poll(nil, 0, 0)
		m.check("idle fetch", err)
	}
	took, used = m.spent()
	m.set("idle poll that does not wait: time / CPU / bytes", "%s / %s / %s", ms(took/polls), ms(used/polls), bytesOf(n))
	const waits = 40
	m.mark()
	for range waits {
		_, _, err = s.poll(nil, 0, 50*time.Millisecond)
		m.check("waiting fetch", err)
	}
	_, used = m.spent()
	m.set("idle poll that waits: CPU", "%s", ms(used/waits))
	m.wakeUps(s, places)
}

// wakeUps measures how long after a record was sent a waiting poll has it.
func (m *measuring) wakeUps(s *session, places []place) {
	const times = 50
	var sum, cpuSum time.Duration
	ends := map[place]int64{m.places[0]: 1} // a start has written to it
	for i := range times {
		p := places[(i*7919+len(places)/2)%len(places)]
		got := make(chan error, 1)
		var at time.Time
		base := cpu(m.s.pid())
		go func() {
			for { // the partition may have told its high watermark before
				r, _, err := s.poll(nil, 0, 10*time.Second)
				at = time.Now()
				if err != nil {
					got <- err
					return
				}
				if _, with := rows(r); with > 0 {
					got <- nil
					return
				}
			}
		}()
		time.Sleep(20 * time.Millisecond)
		sent := time.Now()
		m.check("produce", m.k.produce([]place{p}, oneRecord(m.t)))
		m.check("wake up", <-got)
		sum += at.Sub(sent)
		ends[p]++
		_, _, err := s.poll([]place{p}, ends[p], 0)
		m.check("catch up", err)
		cpuSum += cpu(m.s.pid()) - base
	}
	m.set("one record wakes the poll after / CPU of it all", "%s / %s", ms(sum/times), ms(cpuSum/times))
}

// oneEach appends one record to each partition, in requests of 1000.
func (m *measuring) oneEach(row string) {
	b := oneRecord(m.t)
	m.mark()
	for at := 0; at < len(m.places); at += 1000 {
		m.check(row, m.k.produce(m.places[at:min(at+1000, len(m.places))], b))
	}
	took, used := m.spent()
	m.set(row, "%s / %s", ms(took), ms(used))
}

func (m *measuring) metricsPage() {
	if m.node == nil {
		return
	}
	const times = 5
	n := 0
	m.mark()
	for range times {
		b, err := m.node.page("/metrics")
		m.check("/metrics", err)
		n = len(b)
	}
	took, used := m.spent()
	m.set("/metrics: time / CPU / bytes", "%s / %s / %s", ms(took/times), ms(used/times), bytesOf(n))
}

// tierAll closes every active segment, as segment.ms does for partitions that
// were written together, and waits until all is in the bucket.
func (m *measuring) tierAll() {
	if m.node == nil {
		return
	}
	m.mark()
	for _, t := range m.topics {
		m.node.API(http.MethodPost, "/v1/topics/"+t+"/roll", nil)
	}
	left, pause := 0, max(time.Duration(len(m.places))*50*time.Microsecond, 100*time.Millisecond) // asking costs, too
	for end := time.Now().Add(15 * time.Minute); ; time.Sleep(pause) {
		left = 0
		for _, t := range m.topics {
			for _, p := range m.node.Storage(t) {
				left += btoi(p.TieredEnd < p.HighWatermark)
			}
		}
		if left == 0 || time.Now().After(end) {
			break
		}
	}
	took, used := m.spent()
	m.set("close and upload every segment: time / CPU / left", "%s / %s / %d", ms(took), ms(used), left)
	m.set("local files after it", "%d", countFiles(filepath.Join(m.node.Dir, "logs")))
	m.memory("RSS anon / file after it")
}

func countFiles(dir string) (n int) {
	_ = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			n++
		}
		return nil
	})
	return n
}

// run takes all measurements.
func (m *measuring) run(topics []string, each int32) {
	m.start("start, empty")
	m.memory("RSS anon / file, empty")
	m.counts("fds / threads / goroutines, empty")
	m.topics, m.each = topics, each
	m.create()
	m.memory("RSS anon / file, created")
	m.counts("fds / threads / goroutines, created")
	m.idling("idle CPU")
	m.metadataAnswers()
	m.metricsPage()
	m.restart("stop, start: leaders known / first ack", m.s.stop)
	m.fetching()
	m.oneEach("one record to each: time / CPU")
	m.memory("RSS anon / file after it ")
	m.counts("fds / threads / goroutines after it")
	m.oneEach("one more to each: time / CPU")
	m.idling("idle CPU, each with records")
	m.restart("kill -9, start: leaders known / first ack, each with records", m.s.kill)
	m.restart("stop, start: leaders known / first ack, each with records", m.s.stop)
	m.tierAll()
	if m.node != nil {
		m.idling("idle CPU, all in the bucket")
		m.restart("kill -9, start: leaders known / first ack, all in the bucket", m.s.kill)
		m.metricsPage()
	}
	m.k.close()
}

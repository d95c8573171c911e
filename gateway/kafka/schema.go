package kafka

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// kmsg makes arrays by the counts that a request claims, if only there are as
// many bytes left as elements: a small frame could cost a hundred times its
// size. So each request other than Produce is walked before it is decoded, by
// a schema that says what is where.

// maxElements bounds the array elements of a request, nested ones included.
const maxElements = 100_000

// schemas has the shape of each request: fixed sizes in bytes, s for a string, b for bytes,
// [...] for an array of structures, <...> for one of plain values, ?{...} for a
// structure that may be missing; @a-b and @a+ say which versions have it.
// Structures end with tags when the version is flexible.
func schemas() map[kmsg.Key]string {
	const named = "s@0-12 16@13+"
	return map[kmsg.Key]string{
		kmsg.Fetch: "4@0-14 4 4 4@3+ 1@4+ 4@7+ 4@7+ [" + named + " [4 4@9+ 8 4@12+ 8@5+ 4]] " +
			"[@7+ " + named + " <4>] s@11+",
		kmsg.ListOffsets:             "4 1@2+ [s [4 4@4+ 8]] 4@10+",
		kmsg.Metadata:                "[16@10+ s] 1@4+ 1@8-10 1@8+",
		kmsg.OffsetCommit:            "s 4 s s@7+ 8@2-4 [s@0-9 16@10+ [4 8 4@6+ s]]",
		kmsg.OffsetFetch:             "s@0-7 [@0-7 s <4>] [@8+ s s@9+ 4@9+ [s@8-9 16@10+ <4>]] 1@7+",
		kmsg.FindCoordinator:         "s@0-3 1@1+ <@4+ s>",
		kmsg.JoinGroup:               "s 4 4@1+ s s@5+ s [s b] s@8+",
		kmsg.Heartbeat:               "s 4 s s@3+",
		kmsg.LeaveGroup:              "s s@0-2 [@3+ s s s@5+]",
		kmsg.SyncGroup:               "s 4 s s@3+ s@5+ s@5+ [s b]",
		kmsg.DescribeGroups:          "<s> 1@3+",
		kmsg.ListGroups:              "<@4+ s> <@5+ s>",
		kmsg.DeleteGroups:            "<s>",
		kmsg.OffsetDelete:            "s [s [4]]",
		kmsg.ApiVersions:             "s@3+ s@3+",
		kmsg.CreateTopics:            "[s 4 2 [4 <4>] [s s]] 4 1@1+",
		kmsg.DeleteTopics:            "<@0-5 s> [@6+ s 16] 4",
		kmsg.DeleteRecords:           "[s [4 8]] 4",
		kmsg.InitProducerID:          "s 4 8@3+ 2@3+",
		kmsg.OffsetForLeaderEpoch:    "4@3+ [s [4 4@2+ 4]]",
		kmsg.DescribeConfigs:         "[1 s <s>] 1@1+ 1@3+",
		kmsg.AlterConfigs:            "[1 s [s s]] 1",
		kmsg.DescribeLogDirs:         "[s <4>]",
		kmsg.CreatePartitions:        "[s 4 [<4>]] 4 1",
		kmsg.IncrementalAlterConfigs: "[1 s [s 1 s]] 1",
		kmsg.DescribeCluster:         "1 1@1+ 1@2+",
		kmsg.DescribeTopicPartitions: "[s] 4 ?{s 4}",
	}
}

// field is one field of a request.
type field struct {
	kind     byte // 'n' a fixed size, 's' string, 'b' bytes, '[' structures, '<' values, '?' structure or none
	size     int
	min, max int16 // versions that have it
	sub      []field
}

// parseSchema parses the form that schemas uses.
func parseSchema(s string) ([]field, error) {
	words := strings.Fields(strings.NewReplacer("[@", " [@", "[", " [ ", "<@", " <@", "<", " < ", "?{", " ? ",
		"]", " ] ", ">", " > ", "}", " } ").Replace(s))
	fields, rest, err := parseFields(words)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("%q is not opened", rest[0])
	}
	if err != nil {
		return nil, fmt.Errorf("parse schema %q: %w", s, err)
	}
	return fields, nil
}

// mustParseSchema is for schemas written here.
func mustParseSchema(s string) []field {
	f, err := parseSchema(s)
	if err != nil {
		panic(err)
	}
	return f
}

func parseFields(words []string) (fields []field, rest []string, err error) {
	for len(words) > 0 {
		word, versions, _ := strings.Cut(words[0], "@")
		f := field{kind: word[0], max: math.MaxInt16}
		if err := f.parseVersions(versions); err != nil {
			return nil, nil, err
		}
		switch word {
		case "]", ">", "}":
			return fields, words, nil
		case "[", "<", "?":
			if f.sub, words, err = parseFields(words[1:]); err != nil {
				return nil, nil, err
			}
			if end := map[string]string{"[": "]", "<": ">", "?": "}"}[word]; len(words) == 0 || words[0] != end {
				return nil, nil, fmt.Errorf("%q is not closed", word)
			}
		case "s", "b":
		default:
			f.kind = 'n'
			if f.size, err = strconv.Atoi(word); err != nil {
				return nil, nil, fmt.Errorf("field %q: %w", word, err)
			}
		}
		fields, words = append(fields, f), words[1:]
	}
	return fields, nil, nil
}

func (f *field) parseVersions(s string) error {
	if s == "" {
		return nil
	}
	from, to, ranged := strings.Cut(strings.TrimSuffix(s, "+"), "-")
	lo, err := strconv.ParseInt(from, 10, 16)
	if err != nil {
		return fmt.Errorf("versions %q: %w", s, err)
	}
	f.min = int16(lo)
	if ranged {
		hi, err := strconv.ParseInt(to, 10, 16)
		if err != nil {
			return fmt.Errorf("versions %q: %w", s, err)
		}
		f.max = int16(hi)
	}
	return nil
}

// check walks a request's body and returns how many array elements it has.
func check(b []byte, schema []field, version int16, flexible bool) (elements int, err error) {
	w := walker{b: b, flexible: flexible}
	n := 0
	w.walk(schema, version, &n)
	w.skipTags()
	if w.bad {
		return 0, errLies
	}
	return n, nil
}

func (w *walker) walk(fields []field, version int16, elements *int) {
	for i := range fields {
		f := &fields[i]
		if version < f.min || version > f.max {
			continue
		}
		switch f.kind {
		case 'n':
			w.skip(f.size)
		case 's':
			w.skipString()
		case 'b':
			w.skipBytes()
		case '?':
			if len(w.b) > 0 && int8(w.b[0]) < 0 {
				w.skip(1)
				continue
			}
			w.skip(1)
			w.walk(f.sub, version, elements)
			w.skipTags()
		default:
			w.walkArray(f, version, elements)
		}
		if w.bad {
			return
		}
	}
}

func (w *walker) walkArray(f *field, version int16, elements *int) {
	n := w.count(1)
	if *elements += n; *elements > maxElements {
		w.bad = true
	}
	for range n {
		if w.bad {
			return
		}
		w.walk(f.sub, version, elements)
		if f.kind == '[' {
			w.skipTags()
		}
	}
}

package httpgate

import "math/bits"

// The check of JSON and the search for what a JSON string has to escape, eight
// bytes at a time: encoding/json looks at each byte of a line by a call, which
// was half the CPU time of an NDJSON body.

const (
	maxNesting = 10_000 // of arrays and objects, as encoding/json has it

	everyByte = 0x0101010101010101
	highBits  = 0x80 * everyByte
)

// validJSON tells what json.Valid does: whether b is one JSON value, with
// spaces around it. What is no UTF-8 may be in its strings.
func validJSON(b []byte) bool {
	i := jsonEnd(b, skipSpace(b, 0), 0)
	return i >= 0 && skipSpace(b, i) == len(b)
}

// jsonEnd returns the end of the value at i, which is in depth others; -1 if
// there is none.
func jsonEnd(b []byte, i, depth int) int {
	if i >= len(b) {
		return -1
	}
	switch b[i] {
	case '"':
		return stringEnd(b, i)
	case '{', '[':
		if depth == maxNesting {
			return -1
		}
		return listEnd(b, i, depth+1)
	case 't':
		return wordEnd(b, i, "true")
	case 'f':
		return wordEnd(b, i, "false")
	case 'n':
		return wordEnd(b, i, "null")
	}
	return numberEnd(b, i)
}

// listEnd is jsonEnd of an object or an array.
func listEnd(b []byte, i, depth int) int {
	object, last := b[i] == '{', b[i]+2 // the bracket that closes it
	i = skipSpace(b, i+1)
	if i < len(b) && b[i] == last {
		return i + 1
	}
	for {
		if object {
			if i >= len(b) || b[i] != '"' {
				return -1
			}
			if i = stringEnd(b, i); i < 0 {
				return -1
			}
			if i = skipSpace(b, i); i >= len(b) || b[i] != ':' {
				return -1
			}
			i = skipSpace(b, i+1)
		}
		if i = jsonEnd(b, i, depth); i < 0 {
			return -1
		}
		if i = skipSpace(b, i); i >= len(b) {
			return -1
		}
		switch b[i] {
		case last:
			return i + 1
		case ',':
			i = skipSpace(b, i+1)
		default:
			return -1
		}
	}
}

// stringEnd is jsonEnd of a string, whose quote is at i.
func stringEnd(b []byte, i int) int {
	for i++; ; i++ {
		if i += plain(b[i:], 0); i+1 >= len(b) && (i >= len(b) || b[i] != '"') {
			return -1
		}
		switch {
		case b[i] == '"':
			return i + 1
		case b[i] != '\\':
			return -1 // a control character
		}
		switch i++; b[i] {
		case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		case 'u':
			if len(b)-i <= 4 || !isHex(b[i+1]) || !isHex(b[i+2]) || !isHex(b[i+3]) || !isHex(b[i+4]) {
				return -1
			}
			i += 4
		default:
			return -1
		}
	}
}

func isHex(c byte) bool {
	return isDigit(c) || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func wordEnd(b []byte, i int, word string) int {
	if len(b)-i < len(word) || string(b[i:i+len(word)]) != word {
		return -1
	}
	return i + len(word)
}

// numberEnd is jsonEnd of a number.
func numberEnd(b []byte, i int) int {
	if b[i] == '-' {
		i++
	}
	whole := digits(b, i)
	if whole == i || b[i] == '0' && whole > i+1 {
		return -1
	}
	if i = whole; i < len(b) && b[i] == '.' {
		from := i + 1
		if i = digits(b, from); i == from {
			return -1
		}
	}
	if i < len(b) && (b[i] == 'e' || b[i] == 'E') {
		from := i + 1
		if from < len(b) && (b[from] == '+' || b[from] == '-') {
			from++
		}
		if i = digits(b, from); i == from {
			return -1
		}
	}
	return i
}

func digits(b []byte, i int) int {
	for i < len(b) && isDigit(b[i]) {
		i++
	}
	return i
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\t' || b[i] == '\n' || b[i] == '\r') {
		i++
	}
	return i
}

// plain returns how many bytes at the beginning of s are neither a quote nor a
// backslash nor a control character, nor, with highBits, beyond ASCII.
func plain[S string | []byte](s S, stop uint64) int {
	i := 0
	for ; i+8 <= len(s); i += 8 {
		w := uint64(s[i]) | uint64(s[i+1])<<8 | uint64(s[i+2])<<16 | uint64(s[i+3])<<24 |
			uint64(s[i+4])<<32 | uint64(s[i+5])<<40 | uint64(s[i+6])<<48 | uint64(s[i+7])<<56
		quote, slash := w^('"'*everyByte), w^('\\'*everyByte)
		// The highest bit of a byte of the sum is set where it is such a byte;
		// above the first one it may be set elsewhere too.
		found := (w-0x20*everyByte)&^w | (quote-everyByte)&^quote | (slash-everyByte)&^slash
		if found = found&highBits | w&stop; found != 0 {
			return i + bits.TrailingZeros64(found)/8
		}
	}
	for ; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c == '"' || c == '\\' || uint64(c)&stop != 0 {
			break
		}
	}
	return i
}

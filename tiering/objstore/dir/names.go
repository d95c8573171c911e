package dir

import (
	"fmt"
	"strings"

	"github.com/cirrolog/cirrolog/tiering/objstore"
)

const (
	hexDigits  = "0123456789ABCDEF"
	dirSuffix  = "+"
	emptyName  = "%"
	maxElement = 240 // file systems take 255 bytes
)

func plain(c byte) bool {
	switch {
	case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		return true
	}
	return c == '.' || c == '_' || c == '=' || c == '-'
}

// escape makes a file name of one element of a key. Bytes other than letters,
// digits and "._=-" become %XX, as do the dots of "." and ".."; the empty
// element is "%". Different elements have different names.
func escape(element string) string {
	if element == "" {
		return emptyName
	}
	dots := element == "." || element == ".."
	var b strings.Builder
	for i := range len(element) {
		if c := element[i]; plain(c) && !dots {
			b.WriteByte(c)
		} else {
			b.WriteByte('%')
			b.WriteByte(hexDigits[c>>4])
			b.WriteByte(hexDigits[c&15])
		}
	}
	return b.String()
}

// unescape is the inverse of escape; ok is false for a name that escape does
// not make, hence a file that is none of ours.
func unescape(name string) (element string, ok bool) {
	if name == emptyName {
		return "", true
	}
	b := make([]byte, 0, len(name))
	for i := 0; i < len(name); i++ {
		if name[i] != '%' {
			b = append(b, name[i])
			continue
		}
		if i+2 >= len(name) {
			return "", false
		}
		hi, lo := strings.IndexByte(hexDigits, name[i+1]), strings.IndexByte(hexDigits, name[i+2])
		if hi < 0 || lo < 0 {
			return "", false
		}
		b = append(b, byte(hi<<4|lo))
		i += 2
	}
	element = string(b)
	return element, element != "" && escape(element) == name
}

// split returns the directory, relative to the objects, and the file name of a
// key.
func split(key string) (dir, file string, err error) {
	if err := objstore.CheckKey(key); err != nil {
		return "", "", err
	}
	elements := strings.Split(key, "/")
	for i, e := range elements {
		name := escape(e)
		if len(name) > maxElement {
			return "", "", fmt.Errorf("element of %d bytes: %w", len(name), objstore.ErrInvalid)
		}
		if i < len(elements)-1 {
			name += dirSuffix
		}
		elements[i] = name
	}
	last := len(elements) - 1
	return strings.Join(elements[:last], "/"), elements[last], nil
}

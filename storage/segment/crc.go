package segment

// CRC32C of a concatenation from the CRCs of its parts, by multiplication in
// GF(2)[x] modulo the Castagnoli polynomial (reflected), after M. Adler's
// crc32_combine: crc(AB) = crc(A)·x^(8·len B) + crc(B).

const castagnoliPoly = 0x82f63b78

// multiply returns a·b modulo the polynomial, both reflected.
func multiply(a, b uint32) uint32 {
	var p uint32
	for m := uint32(1) << 31; m != 0; m >>= 1 {
		if a&m != 0 {
			p ^= b
		}
		// b = b·x, without a branch
		b = b>>1 ^ castagnoliPoly&-(b&1)
	}
	return p
}

// powers[k] is x^(8·2^k).
var powers = func() (t [48]uint32) {
	p := uint32(1) << 30 // x^1
	for range 3 {
		p = multiply(p, p) // x^2, x^4, x^8
	}
	for k := range t {
		t[k] = p
		p = multiply(p, p)
	}
	return t
}()

// shiftOperator returns x^(8n).
func shiftOperator(n int64) uint32 {
	op := uint32(1) << 31 // x^0
	for k := 0; n != 0 && k < len(powers); k, n = k+1, n>>1 {
		if n&1 != 0 {
			op = multiply(powers[k], op)
		}
	}
	return op
}

// Combine returns the CRC32C of A followed by B, from crc(A), crc(B) and the
// length of B in bytes.
func Combine(crcA, crcB uint32, lenB int64) uint32 {
	return multiply(shiftOperator(lenB), crcA) ^ crcB
}

// combiner remembers the operator of the last length: batches of one producer
// often have the same size.
type combiner struct {
	n  int64
	op uint32
}

func (c *combiner) combine(crcA, crcB uint32, lenB int64) uint32 {
	if c.op == 0 || c.n != lenB {
		c.n, c.op = lenB, shiftOperator(lenB)
	}
	return multiply(c.op, crcA) ^ crcB
}

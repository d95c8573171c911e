package segment

// CRC32C of a concatenation from the CRCs of its parts, by multiplication in
// GF(2)[x] modulo the Castagnoli polynomial (reflected), after M. Adler's
// crc32_combine: crc(AB) = crc(A)·x^(8·len B) + crc(B).

const castagnoliPoly = 0x82f63b78

// multiply returns a·b modulo the polynomial, both reflected. It has no
// branches on data, which would be mispredicted half of the time.
func multiply(a, b uint32) uint32 {
	var p uint32
	for range 32 {
		p ^= b & uint32(int32(a)>>31)
		a <<= 1
		b = b>>1 ^ castagnoliPoly&-(b&1) // b·x
	}
	return p
}

// one is x^0.
const one = uint32(1) << 31

// powers[k][i] is x^(8·i·256^k): the shift by the k-th byte of a length.
var powers = func() (t [6][256]uint32) {
	step := uint32(1) << 30 // x^1
	for range 3 {
		step = multiply(step, step) // x^2, x^4, x^8
	}
	for k := range t {
		t[k][0] = one
		for i := 1; i < 256; i++ {
			t[k][i] = multiply(t[k][i-1], step)
		}
		step = multiply(t[k][255], step)
	}
	return t
}()

// shiftOperator returns x^(8n), for n below 2^48.
func shiftOperator(n int64) uint32 {
	op := powers[0][n&255]
	for k := 1; k < len(powers); k++ {
		n >>= 8
		if n == 0 {
			break
		}
		if i := n & 255; i != 0 {
			op = multiply(powers[k][i], op)
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

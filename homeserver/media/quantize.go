package media

import (
	"cmp"
	"image"
	"image/color"
	"slices"
)

// maxColours leaves one of 256 for what is transparent.
const maxColours = 255

// quantizer chooses the colours of frames by median cut over a histogram of 15 bits.
type quantizer struct {
	bins  [1 << 15]colourBin
	index [1 << 15]byte
}

// colourBin gathers pixels of nearly the same colour.
type colourBin struct{ n, r, g, b uint64 }

// weighted is the colour of a bin.
type weighted struct {
	bin  int
	n    uint64
	rgbs [3]byte
}

func newQuantizer() *quantizer { return &quantizer{} }

// seen gives the colour of a pixel, unless it is rather transparent.
func seen(p []byte) (r, g, b byte, ok bool) {
	switch a := uint(p[3]); {
	case a < 128:
		return 0, 0, 0, false
	case a < 255: // the colours are multiplied by it
		return byte(min(255, uint(p[0])*255/a)), byte(min(255, uint(p[1])*255/a)), byte(min(255, uint(p[2])*255/a)), true
	}
	return p[0], p[1], p[2], true
}

func binOf(r, g, b byte) int { return int(r>>3)<<10 | int(g>>3)<<5 | int(b>>3) }

// paletted gives a part of an image colours by number. Where the image before (if any) has the same pixel, it is transparent.
func (q *quantizer) paletted(img, before *image.RGBA, part image.Rectangle) *image.Paletted {
	each := func(fn func(x, y int, p []byte)) {
		for y := part.Min.Y; y < part.Max.Y; y++ {
			for x := part.Min.X; x < part.Max.X; x++ {
				at := img.PixOffset(x, y)
				p := img.Pix[at : at+4 : at+4]
				if before == nil || [4]byte(p) != [4]byte(before.Pix[at:at+4]) {
					fn(x, y, p)
				}
			}
		}
	}
	var used []int
	each(func(_, _ int, p []byte) {
		r, g, b, ok := seen(p)
		if !ok {
			return
		}
		bin := binOf(r, g, b)
		v := &q.bins[bin]
		if v.n == 0 {
			used = append(used, bin)
		}
		*v = colourBin{v.n + 1, v.r + uint64(r), v.g + uint64(g), v.b + uint64(b)}
	})
	colours := make([]weighted, len(used))
	for i, bin := range used {
		v := &q.bins[bin]
		colours[i] = weighted{bin, v.n, [3]byte{byte(v.r / v.n), byte(v.g / v.n), byte(v.b / v.n)}}
		*v = colourBin{}
	}
	palette := color.Palette{color.RGBA{}} // number 0: nothing
	for i, box := range medianCut(colours) {
		for _, c := range box {
			q.index[c.bin] = byte(i + 1)
		}
		palette = append(palette, mean(box))
	}
	out := image.NewPaletted(part, palette)
	each(func(x, y int, p []byte) {
		if r, g, b, ok := seen(p); ok {
			out.Pix[out.PixOffset(x, y)] = q.index[binOf(r, g, b)]
		}
	})
	return out
}

// mean is the colour that stands for others.
func mean(box []weighted) color.RGBA {
	var sum [3]uint64
	var n uint64
	for _, c := range box {
		n += c.n
		for i, v := range c.rgbs {
			sum[i] += uint64(v) * c.n
		}
	}
	return color.RGBA{byte(sum[0] / n), byte(sum[1] / n), byte(sum[2] / n), 255}
}

// colourBox is a part of the colours that one colour will stand for.
type colourBox struct {
	colours []weighted
	axis    int
	score   uint64 // how much is won by dividing it
}

func newColourBox(colours []weighted) colourBox {
	b := colourBox{colours: colours}
	low, high, n := [3]byte{255, 255, 255}, [3]byte{}, uint64(0)
	for _, c := range colours {
		n += c.n
		for i, v := range c.rgbs {
			low[i], high[i] = min(low[i], v), max(high[i], v)
		}
	}
	for i := range low {
		if d := uint64(high[i] - low[i]); i == 0 || d > uint64(high[b.axis]-low[b.axis]) {
			b.axis = i
		}
	}
	if len(colours) > 1 {
		d := uint64(high[b.axis]-low[b.axis]) + 1
		b.score = d * d * n
	}
	return b
}

// medianCut divides colours into at most maxColours boxes.
func medianCut(colours []weighted) [][]weighted {
	out := [][]weighted{}
	if len(colours) <= maxColours {
		for i := range colours {
			out = append(out, colours[i:i+1])
		}
		return out
	}
	boxes := []colourBox{newColourBox(colours)}
	for len(boxes) < maxColours {
		widest := 0
		for i, b := range boxes {
			if b.score > boxes[widest].score {
				widest = i
			}
		}
		b := boxes[widest]
		slices.SortFunc(b.colours, func(x, y weighted) int { return cmp.Compare(x.rgbs[b.axis], y.rgbs[b.axis]) })
		var all, half uint64
		for _, c := range b.colours {
			all += c.n
		}
		cut := 0
		for cut < len(b.colours)-1 && (cut == 0 || 2*half < all) {
			half += b.colours[cut].n
			cut++
		}
		boxes[widest] = newColourBox(b.colours[:cut])
		boxes = append(boxes, newColourBox(b.colours[cut:]))
	}
	for _, b := range boxes {
		out = append(out, b.colours)
	}
	return out
}

package media

import (
	"bytes"
	"image"
	"image/color/palette"
	"image/gif"
	"testing"
)

// BenchmarkThumbnail is a photo of twelve megapixels.
func BenchmarkThumbnail(b *testing.B) {
	src := encodeJPEG(b, quadrants(4000, 3000), 6)
	b.ReportAllocs()
	for b.Loop() {
		p, err := inspect(bytes.NewReader(src))
		if err != nil {
			b.Fatal(err)
		}
		img, err := p.decode(bytes.NewReader(src))
		if err != nil {
			b.Fatal(err)
		}
		part, size := fit(p.orientedSize(), scaleBox(800, 600))
		if size != image.Pt(800, 1067) {
			b.Fatal(size)
		}
		if _, _, err := render(img, p.orientation, part, size); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAnimation is three seconds of a changing picture, 640×480.
func BenchmarkAnimation(b *testing.B) {
	g := &gif.GIF{}
	for i := range 60 {
		p := image.NewPaletted(image.Rect(0, 0, 640, 480), palette.Plan9)
		for j := range p.Pix {
			p.Pix[j] = byte((j%640 + j/640 + 5*i) / 3)
		}
		g.Image, g.Delay = append(g.Image, p), append(g.Delay, 5)
	}
	var src bytes.Buffer
	if err := gif.EncodeAll(&src, g); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		r := bytes.NewReader(src.Bytes())
		a, err := scanGIF(r)
		if err != nil {
			b.Fatal(err)
		}
		part, size := fit(a.size, scaleBox(320, 240))
		out, err := a.render(b.Context(), r, part, size)
		if err != nil || out == nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(len(out)), "bytes")
	}
}

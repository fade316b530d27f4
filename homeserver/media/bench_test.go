package media

import (
	"bytes"
	"image"
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

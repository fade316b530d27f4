package media

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/gif"
	"image/jpeg"
	"image/png"
	"strings"
	"sync"
	"testing"

	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

// quadrants is an image whose corners have the colours red, green, blue, white (top left, top right, bottom left, …).
func quadrants(w, h int) *image.RGBA {
	img := image.NewRGBA(image.Rect(0, 0, w, h))
	for i, c := range []color.RGBA{{255, 0, 0, 255}, {0, 255, 0, 255}, {0, 0, 255, 255}, {255, 255, 255, 255}} {
		x, y := i%2*w/2, i/2*h/2
		draw.Draw(img, image.Rect(x, y, x+(w+1)/2, y+(h+1)/2), image.NewUniform(c), image.Point{}, draw.Src)
	}
	return img
}

// corners names the colours of the corners of an image as letters.
func corners(img image.Image) string {
	b := img.Bounds()
	out := ""
	for _, p := range []image.Point{{b.Min.X + b.Dx()/8, b.Min.Y + b.Dy()/8}, {b.Max.X - 1 - b.Dx()/8, b.Min.Y + b.Dy()/8},
		{b.Min.X + b.Dx()/8, b.Max.Y - 1 - b.Dy()/8}, {b.Max.X - 1 - b.Dx()/8, b.Max.Y - 1 - b.Dy()/8}} {
		r, g, bl, a := img.At(p.X, p.Y).RGBA()
		hi := func(v uint32) bool { return v > 0x8000 }
		switch {
		case !hi(a):
			out += "."
		case hi(r) && hi(g) && hi(bl):
			out += "w"
		case hi(r):
			out += "r"
		case hi(g):
			out += "g"
		case hi(bl):
			out += "b"
		default:
			out += "?"
		}
	}
	return out
}

func encodeJPEG(t testing.TB, img image.Image, orientation int) []byte {
	var b bytes.Buffer
	if err := jpeg.Encode(&b, img, &jpeg.Options{Quality: 95}); err != nil {
		t.Fatal(err)
	}
	if orientation == 0 {
		return b.Bytes()
	}
	// TIFF with one directory of two entries; half of the orientations in little endian
	var order binary.AppendByteOrder = binary.BigEndian
	tiff := []byte("MM\x00\x2a\x00\x00\x00\x08")
	if orientation%2 == 0 {
		order, tiff = binary.LittleEndian, []byte("II\x2a\x00\x08\x00\x00\x00")
	}
	tiff = order.AppendUint16(tiff, 2)
	for _, e := range [][2]uint16{{0x0100, 7}, {0x0112, uint16(orientation)}} {
		tiff = order.AppendUint16(tiff, e[0])
		tiff = order.AppendUint16(tiff, 3)
		tiff = order.AppendUint32(tiff, 1)
		tiff = order.AppendUint16(tiff, e[1])
		tiff = order.AppendUint16(tiff, 0)
	}
	app1 := append([]byte("Exif\x00\x00"), tiff...)
	out := append([]byte{}, b.Bytes()[:2]...)
	out = append(out, 0xff, 0xe0, 0, 4, 1, 2) // some other segment first
	out = append(out, 0xff, 0xe1)
	out = binary.BigEndian.AppendUint16(out, uint16(len(app1)+2))
	return append(append(out, app1...), b.Bytes()[2:]...)
}

func encodePNG(t testing.TB, img image.Image) []byte {
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func encodeGIF(t testing.TB, frames ...image.Image) []byte {
	g := &gif.GIF{}
	for _, f := range frames {
		p := image.NewPaletted(f.Bounds(), color.Palette{color.Black, color.White, color.RGBA{255, 0, 0, 255}, color.RGBA{0, 255, 0, 255}, color.RGBA{0, 0, 255, 255}})
		draw.Draw(p, p.Bounds(), f, f.Bounds().Min, draw.Src)
		g.Image, g.Delay = append(g.Image, p), append(g.Delay, 10)
	}
	var b bytes.Buffer
	if err := gif.EncodeAll(&b, g); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// encodeWebP makes a lossless WebP of one opaque colour: every prefix code has one symbol, so pixels take no bits.
func encodeWebP(w, h int, c color.RGBA) []byte {
	var bits []byte
	n := 0
	put := func(v uint32, width int) {
		for i := range width {
			if n%8 == 0 {
				bits = append(bits, 0)
			}
			bits[n/8] |= byte(v>>i&1) << (n % 8)
			n++
		}
	}
	put(0x2f, 8)
	put(uint32(w-1), 14)
	put(uint32(h-1), 14)
	put(0, 1+3)   // no alpha, version
	put(0, 1+1+1) // no transform, no colour cache, no meta codes
	for _, symbol := range []uint8{c.G, c.R, c.B, c.A, 0} {
		put(1, 1) // a simple code
		put(0, 1) // of one symbol
		put(1, 1) // of 8 bits
		put(uint32(symbol), 8)
	}
	if len(bits)%2 == 1 {
		bits = append(bits, 0)
	}
	out := []byte("RIFF")
	out = binary.LittleEndian.AppendUint32(out, uint32(12+len(bits)))
	out = append(out, "WEBPVP8L"...)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(bits)))
	return append(out, bits...)
}

func (w *world) thumb(uri, query string) (image.Image, answer) {
	w.t.Helper()
	a := w.want(200, "", bob, "GET", v1+"thumbnail/"+uri+"?"+query, "")
	if d := a.Header.Get("Content-Disposition"); !strings.HasPrefix(d, `inline; filename="thumbnail.`) {
		w.t.Errorf("disposition %q", d)
	}
	img, format, err := image.Decode(bytes.NewReader(a.body))
	if err != nil {
		w.t.Fatalf("thumbnail: %v", err)
	}
	if got := a.Header.Get("Content-Type"); got != "image/"+format {
		w.t.Errorf("%s as %s", format, got)
	}
	return img, a
}

func TestThumbnails(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		w := newWorld(t, cfg, Config{})
		transparent := image.NewNRGBA(image.Rect(0, 0, 1000, 500))
		draw.Draw(transparent, image.Rect(0, 0, 500, 500), image.NewUniform(color.RGBA{255, 0, 0, 255}), image.Point{}, draw.Src)
		q := quadrants(1000, 500)
		for _, tc := range []struct {
			name    string
			content []byte
			query   string
			w, h    int
			format  string
			corners string
		}{
			{"jpeg scale", encodeJPEG(t, q, 0), "width=100&height=100", 480, 240, "image/jpeg", "rgbw"},
			{"jpeg scale by height", encodeJPEG(t, quadrants(500, 1000), 0), "width=320&height=240&method=scale", 320, 640, "image/jpeg", "rgbw"},
			{"jpeg crop", encodeJPEG(t, q, 0), "width=32&height=32&method=crop", 32, 32, "image/jpeg", "rgbw"},
			{"jpeg crop 40", encodeJPEG(t, q, 0), "width=40&height=40&method=crop", 96, 96, "image/jpeg", "rgbw"},
			{"jpeg crop wide", encodeJPEG(t, q, 0), "width=90&height=30&method=crop", 96, 36, "image/jpeg", "rgbw"},
			{"crop larger than the image", encodeJPEG(t, q, 0), "width=700&height=700&method=crop", 500, 500, "image/jpeg", "rgbw"},
			{"small is its own", encodePNG(t, quadrants(20, 20)), "width=32&height=32", 20, 20, "image/png", "rgbw"},
			{"large is its own", encodeJPEG(t, q, 0), "width=99999999999999999999&height=3000", 1000, 500, "image/jpeg", "rgbw"},
			{"png", encodePNG(t, q), "width=320&height=240", 480, 240, "image/jpeg", "rgbw"},
			{"png with alpha", encodePNG(t, transparent), "width=320&height=240", 480, 240, "image/png", "r.r."},
			{"16 bit png", encodePNG(t, image.NewRGBA64(image.Rect(0, 0, 1000, 1000))), "width=96&height=96&method=crop", 96, 96, "image/png", "...."},
			{"gif", encodeGIF(t, quadrants(400, 400), image.NewRGBA(image.Rect(0, 0, 400, 400))), "width=96&height=96&method=crop&animated=true", 96, 96, "image/gif", "rgbw"},
			{"small gif", encodeGIF(t, quadrants(40, 40)), "width=96&height=96", 40, 40, "image/jpeg", "rgbw"},
			{"webp", encodeWebP(700, 600, color.RGBA{0, 0, 255, 255}), "width=96&height=96&method=crop&animated=false", 96, 96, "image/jpeg", "bbbb"},
			{"long and thin", encodePNG(t, quadrants(4000, 4)), "width=32&height=32&method=crop", 4, 4, "image/jpeg", ""},
		} {
			uri := w.put(tc.content, "image/x", "")
			img, a := w.thumb(uri, tc.query)
			if s := img.Bounds().Size(); s != image.Pt(tc.w, tc.h) || a.Header.Get("Content-Type") != tc.format {
				t.Errorf("%s: %v %s, want %dx%d %s", tc.name, s, a.Header.Get("Content-Type"), tc.w, tc.h, tc.format)
			}
			if got := corners(img); tc.corners != "" && got != tc.corners {
				t.Errorf("%s: corners %s, want %s", tc.name, got, tc.corners)
			}
			if again := w.want(200, "", bob, "GET", v1+"thumbnail/"+uri+"?"+tc.query, ""); !bytes.Equal(again.body, a.body) {
				t.Errorf("%s: another one the second time", tc.name)
			}
		}
	})
}

func TestThumbnailOrientation(t *testing.T) {
	w := newWorld(t, store.Config{DataDir: t.TempDir()}, Config{})
	// What is looked at is always red, green, blue, white: stored turned so that the orientation puts it right.
	for orientation, stored := range map[int]string{1: "rgbw", 2: "grwb", 3: "wbgr", 4: "bwrg", 5: "rbgw", 6: "gwrb", 7: "wgbr", 8: "brwg"} {
		size := image.Pt(800, 400)
		if orientation >= 5 {
			size = image.Pt(400, 800)
		}
		src := image.NewRGBA(image.Rectangle{Max: size})
		for i, c := range stored {
			x, y := i%2*size.X/2, i/2*size.Y/2
			fill := map[rune]color.RGBA{'r': {255, 0, 0, 255}, 'g': {0, 255, 0, 255}, 'b': {0, 0, 255, 255}, 'w': {255, 255, 255, 255}}[c]
			draw.Draw(src, image.Rect(x, y, x+size.X/2, y+size.Y/2), image.NewUniform(fill), image.Point{}, draw.Src)
		}
		uri := w.put(encodeJPEG(t, src, orientation), "image/jpeg", "")
		img, _ := w.thumb(uri, "width=320&height=200")
		if got := corners(img); got != "rgbw" || img.Bounds().Dx() != 480 || img.Bounds().Dy() != 240 {
			t.Errorf("orientation %d: %s %v", orientation, got, img.Bounds())
		}
		img, _ = w.thumb(uri, "width=96&height=96&method=crop")
		if got := corners(img); got != "rgbw" || img.Bounds().Dx() != 96 {
			t.Errorf("orientation %d, crop: %s %v", orientation, got, img.Bounds())
		}
		img, _ = w.thumb(uri, "width=800&height=600")
		if got := corners(img); orientation != 1 && got != "rgbw" {
			t.Errorf("orientation %d, whole: %s", orientation, got)
		}
	}
}

func TestThumbnailErrors(t *testing.T) {
	w := newWorld(t, store.Config{DataDir: t.TempDir()}, Config{ImageMemory: 20 << 20})
	good := w.put(encodePNG(t, quadrants(200, 200)), "image/png", "")
	bomb := encodePNG(t, image.NewGray(image.Rect(0, 0, 10, 10)))
	copy(bomb[16:], "\x00\x00\x75\x30\x00\x00\x75\x30") // says it is 30000×30000
	crc := crc32PNG(bomb[12:29])
	binary.BigEndian.PutUint32(bomb[29:], crc)
	// A canvas of 10×10 and an image of 16384×16384 inside.
	webpBomb := encodeWebP(16384, 16384, color.RGBA{A: 255})
	webpBomb = append([]byte("RIFF\x00\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x00\x00\x00\x00\x09\x00\x00\x09\x00\x00"), webpBomb[12:]...)
	binary.LittleEndian.PutUint32(webpBomb[4:], uint32(len(webpBomb)-8))
	jpg := encodeJPEG(t, quadrants(400, 400), 0)
	for _, tc := range []struct {
		name    string
		content []byte
		query   string
		status  int
		errcode string
	}{
		{"encrypted", bytes.Repeat([]byte{0x93, 0x11, 0xfe}, 100), "width=32&height=32", 400, "M_UNKNOWN"},
		{"empty", nil, "width=32&height=32", 400, "M_UNKNOWN"},
		{"svg", []byte(`<svg xmlns="http://www.w3.org/2000/svg"/>`), "width=32&height=32", 400, "M_UNKNOWN"},
		{"cut off", jpg[:len(jpg)/2], "width=32&height=32&method=crop", 400, "M_UNKNOWN"},
		{"too many scans", append(append([]byte{}, jpg...), bytes.Repeat([]byte("\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"), 100)...), "width=32&height=32", 400, "M_UNKNOWN"},
		{"only a head", jpg[:20], "width=32&height=32&method=crop", 400, "M_UNKNOWN"},
		{"png bomb", bomb, "width=32&height=32", 413, "M_TOO_LARGE"},
		{"webp bomb", webpBomb, "width=5&height=5&method=crop", 413, "M_TOO_LARGE"},
		{"no width", nil, "height=32", 400, "M_MISSING_PARAM"},
		{"no height", nil, "width=32", 400, "M_MISSING_PARAM"},
		{"negative", nil, "width=-1&height=32", 400, "M_INVALID_PARAM"},
		{"zero", nil, "width=1&height=0", 400, "M_INVALID_PARAM"},
		{"no integer", nil, "width=1.5&height=1", 400, "M_INVALID_PARAM"},
		{"method", nil, "width=1&height=1&method=stretch", 400, "M_INVALID_PARAM"},
		{"animated", nil, "width=1&height=1&animated=perhaps", 400, "M_INVALID_PARAM"},
	} {
		uri := good
		if tc.content != nil || tc.status == 400 && tc.errcode == "M_UNKNOWN" {
			uri = w.put(tc.content, "image/png", "")
		}
		a := w.req(bob, "GET", v1+"thumbnail/"+uri+"?"+tc.query, nil)
		if a.StatusCode != tc.status || a.errcode() != tc.errcode {
			t.Errorf("%s: %d %s", tc.name, a.StatusCode, clip(string(a.body)))
		}
	}
}

// TestThumbnailOnce: many who ask at once get one thumbnail, made once.
func TestThumbnailOnce(t *testing.T) {
	w := newWorld(t, store.Config{DataDir: t.TempDir()}, Config{})
	uri := w.put(encodeJPEG(t, quadrants(3000, 2000), 0), "image/jpeg", "")
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if a := w.req(bob, "GET", v1+"thumbnail/"+uri+"?width=96&height=96&method=crop", nil); a.StatusCode != 200 {
				t.Errorf("%d %s", a.StatusCode, a.body)
			}
		})
	}
	wg.Wait()
	if blobs, temps := w.files(); blobs != 2 || temps != 0 {
		t.Errorf("%d files, %d temporary", blobs, temps)
	}
}

func crc32PNG(b []byte) uint32 {
	crc := ^uint32(0)
	for _, c := range b {
		crc ^= uint32(c)
		for range 8 {
			if crc&1 != 0 {
				crc = crc>>1 ^ 0xedb88320
			} else {
				crc >>= 1
			}
		}
	}
	return ^crc
}

func TestFitNeverEnlarges(t *testing.T) {
	for _, img := range []image.Point{{1, 1}, {1, 5000}, {5000, 1}, {320, 240}, {321, 241}, {4000, 3000}, {333, 4001}} {
		for w := 1; w < 3000; w = w*3/2 + 1 {
			for h := 1; h < 3000; h = h*3/2 + 1 {
				for _, b := range []box{scaleBox(w, h), cropBox(w, h)} {
					part, size := fit(img, b)
					name := fmt.Sprintf("%v for %dx%d (%+v): %v of %v", img, w, h, b, size, part)
					if size.X < 1 || size.Y < 1 || size.X > part.Dx() || size.Y > part.Dy() || !part.In(image.Rectangle{Max: img}) {
						t.Fatal(name)
					}
					if !b.crop && (size.X < min(w, img.X) || size.Y < min(h, img.Y)) {
						t.Fatal("too small: " + name)
					}
					if b.crop && img.X >= b.w && img.Y >= b.h && (size.X < w || size.Y < h) {
						t.Fatal("too small: " + name)
					}
				}
			}
		}
	}
}

// FuzzInspect: no file makes the parsers panic or decode more than they announced.
func FuzzInspect(f *testing.F) {
	f.Add(encodeJPEG(f, quadrants(8, 8), 6))
	f.Add(encodePNG(f, quadrants(8, 8)))
	f.Add(encodeGIF(f, quadrants(8, 8)))
	f.Add(encodeWebP(8, 8, color.RGBA{A: 255}))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := inspect(bytes.NewReader(b))
		if err != nil || p.memory(image.Pt(1, 1)) > 16<<20 {
			return
		}
		img, err := p.decode(bytes.NewReader(b))
		if err != nil {
			return
		}
		if s := img.Bounds().Size(); s.X > p.size.X || s.Y > p.size.Y {
			t.Fatalf("%s: announced %v, decoded %v", p.format, p.size, s)
		}
		part, size := fit(p.orientedSize(), box{3, 2, true})
		if _, _, err := render(img, p.orientation, part, size); err != nil {
			t.Fatal(err)
		}
	})
}

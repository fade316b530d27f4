package media

import (
	"bytes"
	"context"
	"encoding/binary"
	"image"
	"image/color"
	"image/draw"
	"image/gif"
	"slices"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver/store"
)

var gifColours = color.Palette{color.RGBA{}, color.White, color.RGBA{255, 0, 0, 255}, color.RGBA{0, 255, 0, 255}, color.RGBA{0, 0, 255, 255}}

// filled is a frame of one colour of gifColours.
func filled(r image.Rectangle, colour uint8) *image.Paletted {
	p := image.NewPaletted(r, gifColours)
	for i := range p.Pix {
		p.Pix[i] = colour
	}
	return p
}

// moving is a GIF whose later frames cover a part each: one is taken back after it was shown, one leaves a hole if asked to.
func moving(t testing.TB, side int, hole bool) []byte {
	whole, half := image.Rect(0, 0, side, side), side/2
	first := image.NewPaletted(whole, gifColours)
	draw.Draw(first, whole, quadrants(side, side), image.Point{}, draw.Src)
	g := &gif.GIF{
		Image: []*image.Paletted{first, filled(image.Rect(half, half, side, side), 2), filled(image.Rect(0, 0, half, half), 4), filled(image.Rect(half-1, half-1, half, half), 1)},
		Delay: []int{5, 0, 20, 7}, Disposal: []byte{gif.DisposalNone, gif.DisposalPrevious, gif.DisposalNone, gif.DisposalNone}, LoopCount: 3,
	}
	if hole {
		g.Disposal[2] = gif.DisposalBackground
	}
	var b bytes.Buffer
	if err := gif.EncodeAll(&b, g); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// bomb is a GIF of many frames of one pixel on a canvas.
func bomb(w, h, frames int) []byte {
	b := []byte("GIF89a")
	b = binary.LittleEndian.AppendUint16(b, uint16(w))
	b = binary.LittleEndian.AppendUint16(b, uint16(h))
	b = append(b, 0x80, 0, 0, 255, 0, 0, 0, 0, 255)
	for range frames {
		b = append(b, 0x2c, 0, 0, 0, 0, 1, 0, 1, 0, 0, 2, 2, 0x44, 1, 0)
	}
	return append(b, 0x3b)
}

// played tells by their corners what is seen while a GIF plays.
func played(t *testing.T, g *gif.GIF) (seen []string) {
	t.Helper()
	screen := image.NewRGBA(image.Rect(0, 0, g.Config.Width, g.Config.Height))
	for i, f := range g.Image {
		draw.Draw(screen, f.Rect, f, f.Rect.Min, draw.Over)
		seen = append(seen, corners(screen))
		switch g.Disposal[i] {
		case gif.DisposalBackground:
			draw.Draw(screen, f.Rect, image.Transparent, image.Point{}, draw.Src)
		case gif.DisposalPrevious:
			t.Fatal("a thumbnail takes back frames")
		}
	}
	return seen
}

func TestAnimatedThumbnails(t *testing.T) {
	w := newWorld(t, store.Config{DataDir: t.TempDir()}, Config{})
	get := func(content []byte, query string) answer {
		t.Helper()
		uri := w.put(content, "application/octet-stream", "") // what it says it is does not matter
		a := w.want(200, "", bob, "GET", v1+"thumbnail/"+uri+"?"+query, "")
		if again := w.want(200, "", bob, "GET", v1+"thumbnail/"+uri+"?"+query, ""); !bytes.Equal(again.body, a.body) || again.Header.Get("Content-Type") != a.Header.Get("Content-Type") {
			t.Error("another one the second time")
		}
		return a
	}
	solid, holed := moving(t, 400, false), moving(t, 400, true)
	for _, tc := range []struct {
		name    string
		content []byte
		query   string
		size    int
		want    []string
		delays  []int
	}{
		{"scaled", solid, "width=320&height=240", 320, []string{"rgbw", "rgbr", "bgbw", "bgbw"}, []int{5, 0, 20, 7}},
		{"cropped", solid, "width=96&height=96&method=crop", 96, []string{"rgbw", "rgbr", "bgbw", "bgbw"}, []int{5, 0, 20, 7}},
		{"with a hole", holed, "width=320&height=240", 320, []string{"rgbw", "rgbr", "bgbw", ".gbw"}, []int{5, 0, 20, 7}},
		{"cut off in the third frame", solid[:bytes.LastIndexByte(solid[:len(solid)-200], 0x2c)+20], "width=320&height=240", 320, nil, nil},
	} {
		a := get(tc.content, tc.query+"&animated=true")
		if a.Header.Get("Content-Type") != "image/gif" || a.Header.Get("Content-Disposition") != `inline; filename="thumbnail.gif"` {
			t.Errorf("%s: %v", tc.name, a.Header)
			continue
		}
		g, err := gif.DecodeAll(bytes.NewReader(a.body))
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		if g.Config.Width != tc.size || g.Config.Height != tc.size || g.LoopCount != 3 {
			t.Errorf("%s: %d×%d, loops %d", tc.name, g.Config.Width, g.Config.Height, g.LoopCount)
		}
		if tc.want == nil {
			if len(g.Image) < 2 || len(g.Image) > 3 {
				t.Errorf("%s: %d frames", tc.name, len(g.Image))
			}
			continue
		}
		if got := played(t, g); !slices.Equal(got, tc.want) || !slices.Equal(g.Delay, tc.delays) {
			t.Errorf("%s: %v %v", tc.name, got, g.Delay)
		}
		if tc.name == "scaled" && g.Image[1].Rect.Dx() > 170 {
			t.Errorf("a frame holds what does not change: %v", g.Image[1].Rect)
		}
		for _, still := range []string{tc.query, tc.query + "&animated=false"} {
			if a := get(tc.content, still); a.Header.Get("Content-Type") != "image/jpeg" {
				t.Errorf("%s: %q gives %s", tc.name, still, a.Header.Get("Content-Type"))
			}
		}
	}
	// What needs no scaling is its own thumbnail.
	small := moving(t, 40, true)
	if a := get(small, "width=96&height=96&animated=true"); !bytes.Equal(a.body, small) || a.Header.Get("Content-Type") != "image/gif" {
		t.Errorf("a small one: %v", a.Header)
	}
}

// TestStillThumbnails: what cannot be animated, or goes beyond the bounds, is still, and is tried once.
func TestStillThumbnails(t *testing.T) {
	w := newWorld(t, store.Config{DataDir: t.TempDir()}, Config{ImageMemory: 100 << 20})
	solid := moving(t, 400, false)
	second := bytes.Index(solid[1000:], []byte{0x21, 0xf9, 4}) + 1000
	begin := time.Now()
	for _, tc := range []struct {
		name    string
		content []byte
		status  int
		blobs   int // what is kept: the file, the still, the mark that it was tried
	}{
		{"one frame", encodeGIF(t, quadrants(400, 400)), 200, 3},
		{"png", encodePNG(t, quadrants(400, 400)), 200, 2},
		{"cut off in the second frame", solid[:second+40], 200, 3},
		{"cut off in the first frame", solid[:second-20], 400, 2},
		{"only a head", solid[:20], 400, 2},
		{"thousands of frames", bomb(200, 200, 5000), 200, 3},
		{"too many pixels in all", bomb(2000, 2000, 100), 200, 3},
		{"too much memory", bomb(65535, 65535, 2), 413, 2},
	} {
		before, _ := w.files()
		uri := w.put(tc.content, "image/gif", "")
		for range 2 {
			a := w.req(bob, "GET", v1+"thumbnail/"+uri+"?width=96&height=96&method=crop&animated=true", nil)
			if a.StatusCode != tc.status || tc.status == 200 && a.Header.Get("Content-Type") == "image/gif" {
				t.Errorf("%s: %d %v", tc.name, a.StatusCode, a.Header)
			}
		}
		if after, temps := w.files(); after-before != tc.blobs || temps != 0 {
			t.Errorf("%s: %d blobs, %d temporary files", tc.name, after-before, temps)
		}
	}
	if d := time.Since(begin); d > 30*time.Second {
		t.Errorf("it took %v", d)
	}
	// An animation that needs more memory than there may be is still, with no mark: the bound may be raised.
	narrow := newWorld(t, store.Config{DataDir: t.TempDir()}, Config{ImageMemory: 16 << 20})
	uri := narrow.put(bomb(600, 600, 100), "image/gif", "")
	if a := narrow.want(200, "", bob, "GET", v1+"thumbnail/"+uri+"?width=300&height=300&animated=true", ""); a.Header.Get("Content-Type") == "image/gif" {
		t.Error("animated beyond the memory")
	}
}

// TestQuantizer: few colours stay as they are, many become 255 that are near.
func TestQuantizer(t *testing.T) {
	img := image.NewRGBA(image.Rect(0, 0, 256, 256))
	for y := range 256 {
		for x := range 256 {
			img.SetRGBA(x, y, color.RGBA{uint8(x), uint8(y), uint8(x ^ y), 255})
		}
	}
	q := newQuantizer()
	p := q.paletted(img, nil, img.Rect)
	var sum int
	for y := range 256 {
		for x := range 256 {
			a, b := img.RGBAAt(x, y), p.At(x, y).(color.RGBA)
			for _, d := range []int{int(a.R) - int(b.R), int(a.G) - int(b.G), int(a.B) - int(b.B)} {
				sum += max(d, -d)
			}
		}
	}
	if off := sum / (3 * 256 * 256); len(p.Palette) != 256 || off > 12 {
		t.Errorf("%d colours, off by %d", len(p.Palette), off)
	}
	few := quadrants(64, 64)
	if got := q.paletted(few, nil, few.Rect); len(got.Palette) != 5 || corners(got) != "rgbw" || got.At(1, 1) != (color.RGBA{255, 0, 0, 255}) {
		t.Errorf("%v", got.Palette)
	}
}

// FuzzAnimation: no file makes what plays GIFs panic or exceed what it announced, and what it writes is a GIF.
func FuzzAnimation(f *testing.F) {
	f.Add(moving(f, 16, false))
	f.Add(moving(f, 16, true))
	f.Add(moving(f, 16, true)[:300])
	f.Add(bomb(3, 300, 20))
	f.Fuzz(func(t *testing.T, b []byte) {
		src := bytes.NewReader(b)
		a, err := scanGIF(src)
		if err != nil {
			t.Fatal(err) // reading cannot fail here
		}
		if a == nil {
			return
		}
		part, size := fit(a.size, box{5, 3, true})
		if !a.bounded(size) || a.memory(size) > 16<<20 {
			return
		}
		out, err := a.render(context.Background(), src, part, size)
		if err != nil || out == nil {
			if err != nil {
				t.Fatal(err)
			}
			return
		}
		g, err := gif.DecodeAll(bytes.NewReader(out))
		if err != nil || len(g.Image) < 2 || len(g.Image) > len(a.frames) || g.Config.Width != size.X {
			t.Fatalf("%v: %d frames of %d", err, len(g.Image), len(a.frames))
		}
	})
}

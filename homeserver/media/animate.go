package media

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/gif"
	"io"
	"time"

	"golang.org/x/image/draw"
)

// Bounds of animated thumbnails; what is beyond them is shown still.
const (
	maxFramePixels    = 64 << 20 // of all frames as they are seen
	maxAnimatedPixels = 32 << 20 // of all frames of the thumbnail
	maxAnimatedBytes  = 16 << 20
	maxAnimatedTime   = 20 * time.Second
)

// stillMark ends the name of an empty blob: of what this is of, no animated thumbnail can be made.
const stillMark = ".none"

// animatedKey gives the blob of a file's animated thumbnail, making it where needed; "" where a still must do.
func (m *Media) animatedKey(ctx context.Context, hash, name string, b box) (string, error) {
	key, err := m.stored(ctx, name+".gif", name+stillMark)
	if err == nil && key == "" {
		key, _, err = m.once(ctx, name+".gif", func(ctx context.Context) (string, string, error) {
			key, err := m.makeAnimation(ctx, hash, name, b)
			return key, "image/gif", err
		})
	}
	if err != nil || key == name+stillMark {
		return "", err
	}
	return key, nil
}

// makeAnimation decodes, scales and stores an animated GIF; the key is "" or that of a mark where it cannot be done.
func (m *Media) makeAnimation(ctx context.Context, hash, name string, b box) (string, error) {
	src, err := m.Blobs.Open(ctx, hash)
	if err != nil {
		return "", fmt.Errorf("open content: %w", err)
	}
	defer func() { _ = src.Close() }()
	a, err := scanGIF(src)
	if err != nil || a == nil {
		return "", err
	}
	var out []byte
	if crop, size := fit(a.size, b); a.bounded(size) {
		if crop.Size() == a.size && size == a.size {
			return hash, nil // Spec: "servers should return the original content rather than thumbnail it"
		}
		need := a.memory(size)
		if need > m.Config.ImageMemory {
			return "", nil
		}
		if err := m.images.Acquire(ctx, need); err != nil {
			return "", err
		}
		defer m.images.Release(need)
		if out, err = a.render(ctx, src, crop, size); err != nil {
			return "", err
		}
	}
	key := name + ".gif"
	if out == nil {
		key = name + stillMark
	}
	return key, m.storeBlob(ctx, key, out)
}

// bounded tells whether there is an animation, and one that may be scaled to a size.
func (a *animation) bounded(size image.Point) bool {
	n := int64(len(a.frames))
	area := func(p image.Point) int64 { return int64(p.X) * int64(p.Y) }
	return n >= 2 && n <= maxFrames && n*area(a.size) <= maxFramePixels && n*area(size) <= maxAnimatedPixels
}

// memory is about how many bytes decoding and scaling take.
func (a *animation) memory(size image.Point) int64 {
	pixels, target := int64(a.size.X)*int64(a.size.Y), int64(size.X)*int64(size.Y)
	const scaled = 32 // as for stills
	// the canvas, what a frame hides, a frame; two frames of the thumbnail; all of them with colours by number, and encoded
	return pixels*(4+4+2) + target*8 + target*2*int64(len(a.frames)) + scaled*int64(size.X)*int64(a.size.Y) + 4<<20
}

// render plays the animation into one of another size; nil where it is damaged before its second frame, takes too long or
// gets too large.
func (a *animation) render(ctx context.Context, src io.ReadSeeker, part image.Rectangle, size image.Point) ([]byte, error) {
	late := time.Now().Add(maxAnimatedTime)
	see := &canvas{RGBA: image.NewRGBA(image.Rectangle{Max: a.size})}
	now, before := image.NewRGBA(image.Rectangle{Max: size}), image.NewRGBA(image.Rectangle{Max: size})
	scaler := draw.BiLinear.NewScaler(size.X, size.Y, part.Dx(), part.Dy())
	out := &gif.GIF{LoopCount: a.loops, Config: image.Config{Width: size.X, Height: size.Y}}
	q := newQuantizer()
	opaque := true
	for i, f := range a.frames {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if time.Now().After(late) {
			return nil, nil
		}
		frame, err := a.decode(src, f)
		if errors.Is(err, errDamaged) {
			break // what can be seen before the damage is played
		}
		if err != nil {
			return nil, err
		}
		see.show(frame, f.disposal)
		if size == part.Size() {
			draw.Copy(now, image.Point{}, see.RGBA, part, draw.Src, nil)
		} else {
			scaler.Scale(now, now.Rect, see.RGBA, part, draw.Src, nil)
		}
		if i == 0 {
			opaque = see.Opaque() && a.staysOpaque()
		}
		changed := now.Rect
		if opaque && i > 0 {
			changed = difference(now, before)
			out.Image = append(out.Image, q.paletted(now, before, changed))
		} else {
			out.Image = append(out.Image, q.paletted(now, nil, changed))
		}
		disposal := byte(gif.DisposalNone)
		if !opaque {
			disposal = gif.DisposalBackground
		}
		out.Delay, out.Disposal = append(out.Delay, f.delay), append(out.Disposal, disposal)
		now, before = before, now
	}
	if len(out.Image) < 2 {
		return nil, nil
	}
	var b bytes.Buffer
	if err := gif.EncodeAll(&b, out); err != nil {
		return nil, err
	}
	if b.Len() > maxAnimatedBytes {
		return nil, nil
	}
	return b.Bytes(), nil
}

// staysOpaque tells whether no frame leaves a hole in a canvas that the first one has covered.
func (a *animation) staysOpaque() bool {
	for i, f := range a.frames {
		if f.disposal == 2 || f.disposal == 3 && i == 0 {
			return false
		}
	}
	return true
}

// difference is the smallest part outside of which two images are the same; it has one pixel at least.
func difference(a, b *image.RGBA) image.Rectangle {
	var r image.Rectangle
	for y := range a.Rect.Dy() {
		p, q := a.Pix[y*a.Stride:][:4*a.Rect.Dx()], b.Pix[y*b.Stride:][:4*a.Rect.Dx()]
		if bytes.Equal(p, q) {
			continue
		}
		first, last := 0, len(p)-1
		for p[first] == q[first] {
			first++
		}
		for p[last] == q[last] {
			last--
		}
		r = r.Union(image.Rect(first/4, y, last/4+1, y+1))
	}
	if r.Empty() {
		return image.Rect(0, 0, 1, 1)
	}
	return r
}

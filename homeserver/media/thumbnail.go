package media

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"image"
	"io"
	"io/fs"
	"net/http"
	"strconv"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// box is what a thumbnail is made for. The sizes of boxes come from short lists, so that a file has few thumbnails.
type box struct {
	w, h int
	crop bool
}

// thumbnail handles GET …/media/thumbnail/{serverName}/{mediaId}.
func (s reader) thumbnail(w http.ResponseWriter, r *http.Request) error {
	b, err := wantedBox(r)
	if err != nil {
		return err
	}
	animated, err := web.QueryBool(r, "animated", false)
	if err != nil {
		return err
	}
	f, err := s.find(r)
	if err != nil {
		return err
	}
	key, contentType, err := s.thumbnailKey(r.Context(), f, b, animated)
	if err != nil {
		return err
	}
	return s.send(w, r, key, contentType, `inline; filename="thumbnail.`+extension(contentType)+`"`)
}

// wantedBox reads width, height and method and rounds them up to a box that is made.
func wantedBox(r *http.Request) (b box, err error) {
	read := func(name string) int {
		v := web.QueryString(r, name)
		n, convErr := strconv.Atoi(v)
		switch {
		case err != nil:
		case v == "":
			err = mxerr.MissingParam("query parameter '" + name + "' is missing")
		case convErr != nil && !errors.Is(convErr, strconv.ErrRange) || n <= 0:
			err = mxerr.InvalidParam("query parameter '" + name + "' must be an integer above 0")
		}
		return n
	}
	w, h := read("width"), read("height")
	if err != nil {
		return b, err
	}
	switch web.QueryString(r, "method") {
	case "", "scale":
		return scaleBox(w, h), nil
	case "crop":
		return cropBox(w, h), nil
	}
	return b, mxerr.InvalidParam("query parameter 'method' must be crop or scale")
}

// wholeImage is the box of thumbnails in the size of the original: what no smaller box can serve.
const wholeImage = 1 << 16

// scaleBox gives the smallest box that holds w×h. Spec: "Thumbnails": 320x240, 640x480, 800x600 and larger than asked rather
// than smaller.
func scaleBox(w, h int) box {
	for _, b := range [...]box{{w: 320, h: 240}, {w: 640, h: 480}, {w: 800, h: 600}, {w: 1280, h: 960}, {w: 1920, h: 1440}} {
		if w <= b.w && h <= b.h {
			return b
		}
	}
	return box{w: wholeImage, h: wholeImage}
}

// cropBox gives a box of about the aspect asked for: the longer side from a list, the shorter in sixteenths of it.
func cropBox(w, h int) box {
	long, short := max(w, h), min(w, h)
	side := wholeImage
	for _, s := range [...]int{32, 96, 192, 320, 640, 800, 1280, 1920, 2560} {
		if long <= s {
			side = s
			break
		}
	}
	// Spec's sizes are squares; parts keep other aspects within a few percent, on the larger side.
	long = min(long, wholeImage)
	short = min(short, long)
	parts := (16*short + long - 1) / long
	other := side * parts / 16
	if w >= h {
		return box{side, other, true}
	}
	return box{other, side, true}
}

func extension(contentType string) string {
	switch contentType {
	case "image/png":
		return "png"
	case "image/gif":
		return "gif"
	}
	return "jpg"
}

func errNoThumbnail(why string) error {
	return mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "no thumbnail can be made of this file: "+why)
}

// thumbnailKey gives the blob of a file's thumbnail, making it where needed. Where the original is what the box asks for and
// harmless to show, it is its own thumbnail. A wish for an animated one is met where it can be.
func (m *Media) thumbnailKey(ctx context.Context, f *store.Media, b box, animated bool) (key, contentType string, err error) {
	hash := hex.EncodeToString(f.SHA256)
	name := fmt.Sprintf("%s-%dx%d", hash, b.w, b.h)
	if b.crop {
		name += "crop"
	}
	if animated {
		if key, err := m.animatedKey(ctx, hash, name, b); err != nil || key != "" {
			return key, "image/gif", err
		}
	}
	for _, t := range [...]string{"image/jpeg", "image/png"} {
		if key, err := m.stored(ctx, name+"."+extension(t)); err != nil || key != "" {
			return key, t, err
		}
	}
	return m.once(ctx, name, func(ctx context.Context) (string, string, error) { return m.makeThumbnail(ctx, hash, name, b) })
}

// stored gives the first of some blobs that there is, "" for none.
func (m *Media) stored(ctx context.Context, keys ...string) (string, error) {
	for _, key := range keys {
		blob, err := m.Blobs.Open(ctx, key)
		if err == nil {
			return key, blob.Close()
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", nil
}

// once makes a blob. Whoever asks for the same meanwhile waits for this one; the first one's going away must not fail the
// others.
func (m *Media) once(ctx context.Context, name string, fn func(context.Context) (key, contentType string, err error)) (string, string, error) {
	type made struct{ key, contentType string }
	ch := m.making.DoChan(name, func() (any, error) {
		key, t, err := fn(context.WithoutCancel(ctx))
		return made{key, t}, err
	})
	select {
	case <-ctx.Done():
		return "", "", ctx.Err()
	case res := <-ch:
		if res.Err != nil {
			return "", "", res.Err
		}
		v := res.Val.(made)
		return v.key, v.contentType, nil
	}
}

// storeBlob keeps what was made.
func (m *Media) storeBlob(ctx context.Context, key string, b []byte) error {
	w, err := m.Blobs.Create(ctx)
	if err != nil {
		return err
	}
	defer w.Abort()
	if _, err := w.Write(b); err != nil {
		return err
	}
	return w.Commit(key)
}

// makeThumbnail decodes, scales and stores.
func (m *Media) makeThumbnail(ctx context.Context, hash, name string, b box) (key, contentType string, err error) {
	src, err := m.Blobs.Open(ctx, hash)
	if err != nil {
		return "", "", fmt.Errorf("open content: %w", err)
	}
	defer func() { _ = src.Close() }()
	info, err := inspect(src)
	if err != nil {
		return "", "", errNoThumbnail("it is no JPEG, PNG, GIF or WebP image (an encrypted file shows no image to the server)")
	}
	crop, size := fit(info.orientedSize(), b)
	if crop.Size() == info.orientedSize() && size == crop.Size() && info.still && info.browserSafe() {
		return hash, info.contentType(), nil // Spec: "servers should return the original content rather than thumbnail it"
	}
	need := info.memory(size)
	if need > m.Config.ImageMemory {
		return "", "", mxerr.TooLarge("the image is too large to make a thumbnail of it")
	}
	if err := m.images.Acquire(ctx, need); err != nil {
		return "", "", err
	}
	defer m.images.Release(need)
	if _, err := src.Seek(0, io.SeekStart); err != nil {
		return "", "", err
	}
	img, err := info.decode(src)
	if err != nil {
		return "", "", errNoThumbnail("the image is damaged")
	}
	out, contentType, err := render(img, info.orientation, crop, size)
	if err != nil {
		return "", "", err
	}
	key = name + "." + extension(contentType)
	return key, contentType, m.storeBlob(ctx, key, out)
}

// fit says which part of an image of that size is shown, and in which size, for a box. Nothing is ever enlarged, and nothing
// is smaller than the box where the image allows it. Spec: "Thumbnails".
func fit(img image.Point, b box) (part image.Rectangle, size image.Point) {
	if !b.crop {
		// The smallest size of the same aspect that covers the box.
		if img.X <= b.w || img.Y <= b.h {
			return image.Rectangle{Max: img}, img
		}
		if img.X*b.h < img.Y*b.w {
			return image.Rectangle{Max: img}, image.Pt(b.w, max(1, ceilDiv(img.Y*b.w, img.X)))
		}
		return image.Rectangle{Max: img}, image.Pt(max(1, ceilDiv(img.X*b.h, img.Y)), b.h)
	}
	// The largest part of the box's aspect, from the middle.
	cut := image.Pt(img.X, max(1, img.X*b.h/b.w))
	if cut.Y > img.Y {
		cut = image.Pt(max(1, img.Y*b.w/b.h), img.Y)
	}
	origin := img.Sub(cut).Div(2)
	part = image.Rectangle{Min: origin, Max: origin.Add(cut)}
	if cut.X <= b.w || cut.Y <= b.h {
		return part, cut
	}
	return part, image.Pt(b.w, b.h)
}

func ceilDiv(a, b int) int { return (a + b - 1) / b }

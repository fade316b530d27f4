package media

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/gif"
	"image/jpeg"
	"image/png"
	"io"

	"golang.org/x/image/draw"
	"golang.org/x/image/webp"
)

// picture is what is known of an image before it is decoded.
type picture struct {
	format      string // jpeg, png, gif, webp
	size        image.Point
	model       color.Model
	orientation int  // EXIF, 1 to 8
	still       bool // known to have one frame
}

var errNoImage = errors.New("not an image")

// inspect reads the head of an image. It trusts no size that the decoder would not keep to.
func inspect(src io.ReadSeeker) (*picture, error) {
	head := make([]byte, 16)
	if _, err := io.ReadFull(src, head); err != nil {
		return nil, errNoImage
	}
	if _, err := src.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	p := &picture{orientation: 1}
	var cfg image.Config
	var err error
	buf := bufio.NewReader(src)
	switch {
	case bytes.HasPrefix(head, []byte("\xff\xd8\xff")):
		p.format, p.still = "jpeg", true
		if cfg, err = jpeg.DecodeConfig(buf); err != nil {
			return nil, err
		}
		if _, err := src.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
		p.orientation = exifOrientation(bufio.NewReader(src))
		if _, err := src.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
		if jpegScans(bufio.NewReader(src)) > maxScans {
			return nil, errNoImage
		}
	case bytes.HasPrefix(head, []byte("\x89PNG\r\n\x1a\n")):
		p.format = "png"
		if cfg, err = png.DecodeConfig(buf); err != nil {
			return nil, err
		}
		if _, err := src.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
		p.still = !isAPNG(bufio.NewReader(src))
	case bytes.HasPrefix(head, []byte("GIF8")):
		p.format = "gif"
		cfg, err = gif.DecodeConfig(buf)
	case bytes.HasPrefix(head, []byte("RIFF")) && string(head[8:12]) == "WEBP":
		p.format = "webp"
		if cfg.Width, cfg.Height, p.still, err = webpSize(buf); err != nil {
			return nil, err
		}
		cfg.ColorModel = color.NRGBAModel
		if !p.still {
			return nil, errNoImage // the decoder knows no animations
		}
	default:
		return nil, errNoImage
	}
	if err != nil {
		return nil, err
	}
	if cfg.Width <= 0 || cfg.Height <= 0 {
		return nil, errNoImage
	}
	p.size, p.model = image.Pt(cfg.Width, cfg.Height), cfg.ColorModel
	return p, nil
}

// orientedSize is the size as it is looked at.
func (p *picture) orientedSize() image.Point {
	if p.orientation >= 5 {
		return image.Pt(p.size.Y, p.size.X)
	}
	return p.size
}

func (p *picture) contentType() string { return "image/" + p.format }

// browserSafe tells whether the original may stand for its thumbnail: its own format, and no orientation that a client
// would have to know.
func (p *picture) browserSafe() bool { return p.orientation == 1 && p.format != "gif" }

// memory is about how many bytes decoding and scaling take.
func (p *picture) memory(to image.Point) int64 {
	pixels := int64(p.size.X) * int64(p.size.Y)
	perPixel := int64(4)
	switch {
	case p.format == "jpeg" && p.model == color.CMYKModel:
		perPixel = 4 + 4*4
	case p.format == "jpeg":
		perPixel = 3 + 3*4 // progressive: coefficients of 4 bytes for each sample
	case p.model == color.RGBA64Model || p.model == color.NRGBA64Model || p.model == color.Gray16Model:
		perPixel = 8
	case p.format == "webp", p.format == "gif":
		perPixel = 8
	}
	const scaled = 32 // four float64 for each pixel of the target's width and the source's height
	return pixels*perPixel + scaled*int64(max(to.X, to.Y))*int64(max(p.size.X, p.size.Y)) + 1<<20
}

// decode reads the (first) image.
func (p *picture) decode(src io.Reader) (img image.Image, err error) {
	defer func() {
		// The decoders are fed by strangers: a panic in one of them is a damaged image.
		if v := recover(); v != nil {
			img, err = nil, fmt.Errorf("decoder panicked: %v", v)
		}
	}()
	buf := bufio.NewReader(src)
	switch p.format {
	case "jpeg":
		return jpeg.Decode(buf)
	case "png":
		return png.Decode(buf)
	case "gif":
		frame, err := gif.Decode(buf)
		if err != nil {
			return nil, err
		}
		canvas := image.NewRGBA(image.Rectangle{Max: p.size}) // a frame may cover a part of it
		draw.Draw(canvas, frame.Bounds(), frame, frame.Bounds().Min, draw.Src)
		return canvas, nil
	default:
		return webp.Decode(buf)
	}
}

// render cuts, scales, turns and encodes: JPEG, or PNG where there is transparency.
func render(img image.Image, orientation int, part image.Rectangle, size image.Point) (out []byte, contentType string, err error) {
	from, to := part, size
	if orientation != 1 {
		from = unturn(part, img.Bounds().Size(), orientation)
		if orientation >= 5 {
			to = image.Pt(size.Y, size.X)
		}
	}
	from = from.Intersect(img.Bounds())
	dst := image.NewRGBA(image.Rectangle{Max: to}) // the type for which the scalers have quick ways
	var scaler draw.Interpolator = draw.CatmullRom
	if from.Dx() > 4*to.X {
		scaler = draw.BiLinear // far fewer steps, and no visible difference when this much is averaged
	}
	scaler.Scale(dst, dst.Bounds(), img, from, draw.Src, nil)
	dst = turn(dst, orientation)
	var b bytes.Buffer
	if dst.Opaque() {
		err = jpeg.Encode(&b, dst, &jpeg.Options{Quality: 85})
		return b.Bytes(), "image/jpeg", err
	}
	err = png.Encode(&b, dst)
	return b.Bytes(), "image/png", err
}

// turned maps a point of the image as stored (of size s) to where it is looked at.
func turned(p, s image.Point, orientation int) image.Point {
	switch orientation {
	case 2:
		return image.Pt(s.X-1-p.X, p.Y)
	case 3:
		return image.Pt(s.X-1-p.X, s.Y-1-p.Y)
	case 4:
		return image.Pt(p.X, s.Y-1-p.Y)
	case 5:
		return image.Pt(p.Y, p.X)
	case 6:
		return image.Pt(s.Y-1-p.Y, p.X)
	case 7:
		return image.Pt(s.Y-1-p.Y, s.X-1-p.X)
	case 8:
		return image.Pt(p.Y, s.X-1-p.X)
	}
	return p
}

// turn applies an EXIF orientation.
func turn(src *image.RGBA, orientation int) *image.RGBA {
	if orientation == 1 {
		return src
	}
	s := src.Bounds().Size()
	d := s
	if orientation >= 5 {
		d = image.Pt(s.Y, s.X)
	}
	dst := image.NewRGBA(image.Rectangle{Max: d})
	for y := range s.Y {
		for x := range s.X {
			p := turned(image.Pt(x, y), s, orientation)
			copy(dst.Pix[dst.PixOffset(p.X, p.Y):][:4], src.Pix[src.PixOffset(x, y):][:4])
		}
	}
	return dst
}

// unturn maps a part of the image as looked at back to the stored image of size s.
func unturn(part image.Rectangle, s image.Point, orientation int) image.Rectangle {
	inverse, d := orientation, s
	if orientation >= 5 {
		d = image.Pt(s.Y, s.X)
	}
	switch orientation { // all others are their own inverse
	case 6:
		inverse = 8
	case 8:
		inverse = 6
	}
	a := turned(part.Min, d, inverse)
	b := turned(part.Max.Sub(image.Pt(1, 1)), d, inverse)
	r := image.Rectangle{Min: a, Max: b}.Canon()
	r.Max = r.Max.Add(image.Pt(1, 1))
	return r
}

// maxScans bounds the scans of a JPEG. Each costs the decoder a walk over the whole image, and few bytes of the file can ask for
// one; encoders make some ten.
const maxScans = 64

// jpegScans counts the markers that begin a scan.
func jpegScans(r *bufio.Reader) (n int) {
	for {
		if _, err := r.ReadSlice(0xff); err != nil {
			if errors.Is(err, bufio.ErrBufferFull) {
				continue
			}
			return n
		}
		next, err := r.Peek(1)
		if err != nil {
			return n
		}
		if next[0] == 0xda {
			n++
		}
	}
}

// exifOrientation finds the orientation in a JPEG's EXIF data, 1 if there is none.
func exifOrientation(r *bufio.Reader) int {
	if _, err := r.Discard(2); err != nil {
		return 1
	}
	for {
		var seg [4]byte
		if _, err := io.ReadFull(r, seg[:]); err != nil || seg[0] != 0xff || seg[1] == 0xda || seg[1] == 0xd9 {
			return 1 // the image data begins
		}
		n := int(binary.BigEndian.Uint16(seg[2:])) - 2
		if n < 0 {
			return 1
		}
		if seg[1] != 0xe1 {
			if _, err := r.Discard(n); err != nil {
				return 1
			}
			continue
		}
		data := make([]byte, n)
		if _, err := io.ReadFull(r, data); err != nil {
			return 1
		}
		if tiff, ok := bytes.CutPrefix(data, []byte("Exif\x00\x00")); ok {
			return tiffOrientation(tiff)
		}
	}
}

// tiffOrientation reads tag 0x0112 of the first directory.
func tiffOrientation(b []byte) int {
	if len(b) < 8 {
		return 1
	}
	var order binary.ByteOrder = binary.BigEndian
	if b[0] == 'I' {
		order = binary.LittleEndian
	}
	at := int64(order.Uint32(b[4:]))
	if at+2 > int64(len(b)) {
		return 1
	}
	n := int64(order.Uint16(b[at:]))
	for i := range n {
		e := at + 2 + 12*i
		if e+12 > int64(len(b)) {
			return 1
		}
		if order.Uint16(b[e:]) == 0x0112 && order.Uint16(b[e+2:]) == 3 {
			if o := int(order.Uint16(b[e+8:])); o >= 1 && o <= 8 {
				return o
			}
			return 1
		}
	}
	return 1
}

// isAPNG tells whether a PNG has an animation: a chunk acTL before the image data.
func isAPNG(r *bufio.Reader) bool {
	if _, err := r.Discard(8); err != nil {
		return false
	}
	for {
		var h [8]byte
		if _, err := io.ReadFull(r, h[:]); err != nil {
			return false
		}
		switch string(h[4:]) {
		case "acTL":
			return true
		case "IDAT", "IEND":
			return false
		}
		if _, err := r.Discard(int(binary.BigEndian.Uint32(h[:])&0x7fffffff) + 4); err != nil {
			return false
		}
	}
}

// webpSize finds the largest size that a WebP file names. Its canvas and its image may differ, and the decoder
// allocates what the image says.
func webpSize(r *bufio.Reader) (w, h int, still bool, err error) {
	if _, err := r.Discard(12); err != nil {
		return 0, 0, false, err
	}
	still = true
	for range 100 {
		var c [8]byte
		if _, err := io.ReadFull(r, c[:]); err != nil {
			break
		}
		n := int64(binary.LittleEndian.Uint32(c[4:]))
		n += n & 1
		head, err := r.Peek(int(min(n, 10)))
		if err != nil {
			break
		}
		switch kind := string(c[:4]); {
		case kind == "VP8X" && len(head) == 10:
			still = still && head[0]&2 == 0
			w = max(w, 1+(int(head[4])|int(head[5])<<8|int(head[6])<<16))
			h = max(h, 1+(int(head[7])|int(head[8])<<8|int(head[9])<<16))
		case kind == "VP8 " && len(head) == 10:
			w = max(w, int(binary.LittleEndian.Uint16(head[6:]))&0x3fff)
			h = max(h, int(binary.LittleEndian.Uint16(head[8:]))&0x3fff)
		case kind == "VP8L" && len(head) >= 5:
			bits := binary.LittleEndian.Uint32(head[1:])
			w = max(w, 1+int(bits&0x3fff))
			h = max(h, 1+int(bits>>14&0x3fff))
		case kind == "ANIM", kind == "ANMF":
			still = false
		}
		if _, err := io.CopyN(io.Discard, r, n); err != nil {
			break
		}
	}
	if w == 0 || h == 0 {
		return 0, 0, false, errNoImage
	}
	return w, h, still, nil
}

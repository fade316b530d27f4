package media

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/gif"
	"io"
)

// gifFrame is a frame of a GIF by where it stands in the file.
type gifFrame struct {
	control  []byte // its graphic control extension
	at, size int64  // its image block
	delay    int    // hundredths of a second
	disposal byte
}

// animation is what is known of a GIF before a pixel is decoded. GIF89a, sections 17 to 26.
type animation struct {
	size   image.Point
	head   []byte // header, screen descriptor, colours of all frames
	loops  int    // as gif.GIF has it: 0 for ever, -1 not at all
	frames []gifFrame
}

// maxFrames bounds the frames of an animated thumbnail.
const maxFrames = 300

// scanGIF looks over a GIF, up to one frame more than are animated, and leaves out what is damaged and all after it; nil is
// what is no GIF.
func scanGIF(src io.Reader) (*animation, error) {
	s := &gifScanner{r: bufio.NewReader(src), a: &animation{loops: -1}}
	err := s.scan()
	var failed readError
	switch {
	case errors.As(err, &failed):
		return nil, failed.err
	case s.a.head == nil:
		return nil, nil
	}
	return s.a, nil
}

// gifScanner walks through the blocks of a GIF.
type gifScanner struct {
	r       *bufio.Reader
	at      int64
	a       *animation
	control []byte
}

var errDamaged = errors.New("damaged GIF")

// take reads the next bytes.
func (s *gifScanner) take(n int) ([]byte, error) {
	b := make([]byte, n)
	if _, err := io.ReadFull(s.r, b); err != nil {
		return nil, ended(err)
	}
	s.at += int64(n)
	return b, nil
}

func (s *gifScanner) skip(n int) error {
	if _, err := s.r.Discard(n); err != nil {
		return ended(err)
	}
	s.at += int64(n)
	return nil
}

// ended tells a file that ends too early from one that cannot be read.
func ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errDamaged
	}
	return readError{err}
}

// skipBlocks passes over a sequence of data blocks.
func (s *gifScanner) skipBlocks() error {
	for {
		n, err := s.take(1)
		if err != nil || n[0] == 0 {
			return err
		}
		if err := s.skip(int(n[0])); err != nil {
			return err
		}
	}
}

// tableSize is how many bytes a table of colours has whose descriptor has these flags.
func tableSize(flags byte) int {
	if flags&0x80 == 0 {
		return 0
	}
	return 3 << (flags&7 + 1)
}

func (s *gifScanner) scan() error {
	head, err := s.take(13)
	if err != nil {
		return err
	}
	size := image.Pt(int(binary.LittleEndian.Uint16(head[6:])), int(binary.LittleEndian.Uint16(head[8:])))
	if !bytes.HasPrefix(head, []byte("GIF8")) || size.X == 0 || size.Y == 0 {
		return errDamaged
	}
	table, err := s.take(tableSize(head[10]))
	if err != nil {
		return err
	}
	s.a.size, s.a.head = size, append(head, table...)
	for len(s.a.frames) <= maxFrames {
		kind, err := s.take(1)
		if err != nil {
			return err
		}
		switch kind[0] {
		case 0x21:
			err = s.extension()
		case 0x2c:
			err = s.image()
		default: // the trailer, or damage
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// extension reads what is said of the next frame or of the whole.
func (s *gifScanner) extension() error {
	label, err := s.take(2) // and the size of its first block
	if err != nil {
		return err
	}
	first, err := s.take(int(label[1]))
	if err != nil {
		return err
	}
	switch {
	case label[1] == 0:
		return nil
	case label[0] == 0xf9 && len(first) == 4:
		s.control = append([]byte{0x21, 0xf9, 4}, first...)
		s.control = append(s.control, 0)
	case label[0] == 0xff && string(first) == "NETSCAPE2.0":
		n, err := s.take(1)
		if err != nil || n[0] == 0 {
			return err
		}
		data, err := s.take(int(n[0]))
		if err != nil {
			return err
		}
		if len(data) == 3 && data[0] == 1 {
			s.a.loops = int(binary.LittleEndian.Uint16(data[1:]))
		}
	}
	return s.skipBlocks()
}

// image notes a frame.
func (s *gifScanner) image() error {
	f := gifFrame{control: s.control, at: s.at - 1}
	s.control = nil
	d, err := s.take(9)
	if err != nil {
		return err
	}
	u16 := func(i int) int { return int(binary.LittleEndian.Uint16(d[i:])) }
	if u16(0)+u16(4) > s.a.size.X || u16(2)+u16(6) > s.a.size.Y {
		return errDamaged
	}
	if err := s.skip(tableSize(d[8]) + 1); err != nil { // and the size of codes
		return err
	}
	if err := s.skipBlocks(); err != nil {
		return err
	}
	f.size = s.at - f.at
	if f.control != nil {
		f.disposal, f.delay = f.control[3]>>2&7, int(binary.LittleEndian.Uint16(f.control[4:]))
	}
	s.a.frames = append(s.a.frames, f)
	return nil
}

// decode reads one frame.
func (a *animation) decode(src io.ReadSeeker, f gifFrame) (frame *image.Paletted, err error) {
	defer func() {
		if v := recover(); v != nil { // as for stills
			frame, err = nil, fmt.Errorf("%w: decoder panicked: %v", errDamaged, v)
		}
	}()
	if _, err := src.Seek(f.at, io.SeekStart); err != nil {
		return nil, err
	}
	img, err := gif.Decode(bufio.NewReader(io.MultiReader(
		bytes.NewReader(a.head), bytes.NewReader(f.control), io.LimitReader(src, f.size), bytes.NewReader([]byte{0x3b}))))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	frame, ok := img.(*image.Paletted)
	if !ok || !frame.Rect.In(image.Rectangle{Max: a.size}) {
		return nil, errDamaged
	}
	return frame, nil
}

// canvas is what is looked at while a GIF plays.
type canvas struct {
	*image.RGBA
	undo     func()
	previous []byte // what was there before a frame that is taken back
}

// show draws the next frame, after what the one before it asked for. GIF89a, section 23.
func (c *canvas) show(frame *image.Paletted, disposal byte) {
	if c.undo != nil {
		c.undo()
	}
	c.undo = nil
	rows := func(fn func(row []byte)) {
		for y := frame.Rect.Min.Y; y < frame.Rect.Max.Y; y++ {
			at := c.PixOffset(frame.Rect.Min.X, y)
			fn(c.Pix[at : at+4*frame.Rect.Dx()])
		}
	}
	switch disposal {
	case 2: // browsers clear to nothing, whatever the background is said to be
		c.undo = func() { rows(func(row []byte) { clear(row) }) }
	case 3:
		c.previous = c.previous[:0]
		rows(func(row []byte) { c.previous = append(c.previous, row...) })
		c.undo = func() {
			left := c.previous
			rows(func(row []byte) { left = left[copy(row, left):] })
		}
	}
	var colours [256][4]byte
	for i, v := range frame.Palette {
		r, g, b, a := v.RGBA()
		colours[i] = [4]byte{byte(r >> 8), byte(g >> 8), byte(b >> 8), byte(a >> 8)}
	}
	from := frame.Pix
	rows(func(row []byte) {
		for x := range len(row) / 4 {
			if v := colours[from[x]]; v[3] != 0 {
				copy(row[4*x:], v[:])
			}
		}
		from = from[frame.Stride:]
	})
}

package store

import (
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Content is what users wrote (event bodies, account data, secrets of theirs). Every Content passes one codec on its
// way into the database and out of it. The first stored byte names the form.
type Content []byte

const (
	contentPlain byte = 0
	contentZstd  byte = 1
	// below this size compression saves less than it costs
	contentMinCompress = 600
)

var zstdEncoder = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false))
	if err != nil {
		panic(err) // the options are constants
	}
	return e
})

var zstdDecoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(64<<20))
	if err != nil {
		panic(err)
	}
	return d
})

func encodeContent(c Content) []byte {
	if len(c) >= contentMinCompress {
		out := make([]byte, 1, len(c))
		out[0] = contentZstd
		out = zstdEncoder().EncodeAll(c, out)
		if len(out) < len(c) {
			return out
		}
	}
	out := make([]byte, 1+len(c))
	copy(out[1:], c)
	return out
}

func decodeContent(b []byte) (Content, error) {
	if len(b) == 0 {
		return nil, errors.New("store: stored content is empty")
	}
	switch b[0] {
	case contentPlain:
		return append(make(Content, 0, len(b)-1), b[1:]...), nil
	case contentZstd:
		out, err := zstdDecoder().DecodeAll(b[1:], nil)
		if err != nil {
			return nil, fmt.Errorf("store: stored content is damaged: %w", err)
		}
		return out, nil
	}
	return nil, fmt.Errorf("store: stored content has the unknown form %d; was it written by a newer version?", b[0])
}

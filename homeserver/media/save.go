package media

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// maxPictureSide is the most pixels that a side of a kept picture may have.
const maxPictureSide = 8192

// SaveImage keeps a picture that the server itself has got for a user, such as the photo in a company's directory, as if
// the user had uploaded it, and returns its mxc URI. Errors: M_TOO_LARGE, M_INVALID_PARAM for what is no picture that
// browsers show or cannot be decoded.
func (m *Media) SaveImage(ctx context.Context, user id.UserID, b []byte) (string, error) {
	if int64(len(b)) > m.Config.MaxUpload {
		return "", mxerr.TooLarge(fmt.Sprintf("the picture has %d bytes; %d are allowed", len(b), m.Config.MaxUpload))
	}
	p, err := inspect(bytes.NewReader(b))
	if err != nil {
		return "", mxerr.InvalidParam("this is no picture in JPEG, PNG, GIF or WebP form")
	}
	if s := p.size; s.X > maxPictureSide || s.Y > maxPictureSide || s.X < 1 || s.Y < 1 {
		return "", mxerr.InvalidParam(fmt.Sprintf("the picture has %d × %d pixels; %d are allowed each way", s.X, s.Y, maxPictureSide))
	}
	if p.memory(p.size) > m.Config.ImageMemory {
		return "", mxerr.InvalidParam(fmt.Sprintf("the picture has %d × %d pixels, too many to be shown", p.size.X, p.size.Y))
	}
	if _, err := p.decode(bytes.NewReader(b)); err != nil {
		return "", mxerr.InvalidParam("the picture is broken: it cannot be decoded")
	}
	now := time.Now().UnixMilli()
	f := store.Media{Origin: m.ServerName, ID: newMediaID(), User: user, Created: now, Type: p.contentType(), Filename: "photo." + p.format}
	if f.SHA256, f.Size, err = m.keep(ctx, bytes.NewReader(b), m.Config.MaxUpload); err != nil {
		return "", err
	}
	if err := m.Store.Write(ctx, func(tx *store.Tx) error { return tx.InsertMedia(f) }); err != nil {
		return "", err
	}
	return "mxc://" + f.Origin + "/" + f.ID, nil
}

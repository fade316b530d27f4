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

// SavedFile is a file that the server itself keeps.
type SavedFile struct {
	URI           string // mxc://
	Type          string
	Size          int64
	Width, Height int // of a picture that browsers show; else 0
}

// SaveFile keeps a file that the server itself has got for a user, as if the user had uploaded it. What is a picture by its
// bytes has their type; of anything else the type is as it was told. Errors: M_TOO_LARGE.
func (m *Media) SaveFile(ctx context.Context, user id.UserID, name, contentType string, b []byte) (SavedFile, error) {
	if int64(len(b)) > m.Config.MaxUpload {
		return SavedFile{}, mxerr.TooLarge(fmt.Sprintf("the file has %d bytes; %d are allowed", len(b), m.Config.MaxUpload))
	}
	out := SavedFile{Type: uploadType(contentType), Size: int64(len(b))}
	if p, err := inspect(bytes.NewReader(b)); err == nil {
		out.Type, out.Width, out.Height = p.contentType(), p.size.X, p.size.Y
	}
	f := store.Media{Origin: m.ServerName, ID: newMediaID(), User: user, Created: time.Now().UnixMilli(), Type: out.Type, Filename: name}
	var err error
	if f.SHA256, f.Size, err = m.keep(ctx, bytes.NewReader(b), m.Config.MaxUpload); err != nil {
		return SavedFile{}, err
	}
	if err := m.Store.Write(ctx, func(tx *store.Tx) error { return tx.InsertMedia(f) }); err != nil {
		return SavedFile{}, err
	}
	out.URI = "mxc://" + f.Origin + "/" + f.ID
	return out, nil
}

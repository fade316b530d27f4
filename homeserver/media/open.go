package media

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"

	"github.com/moothall/moothall/homeserver/store"
)

// OpenArchived opens a file as it was uploaded, for officers: also one that was hidden or deleted for users.
func (m *Media) OpenArchived(ctx context.Context, origin, mediaID string) (Blob, *store.Media, error) {
	var f *store.Media
	err := m.Store.Read(ctx, func(tx *store.Tx) (err error) {
		f, err = tx.ArchivedMedia(origin, mediaID)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	if f == nil || f.SHA256 == nil {
		return nil, nil, errUnknownMedia()
	}
	return m.content(ctx, f)
}

// Open opens a file of this server for its other parts. What users cannot get is not found here either. The error for a
// file that was announced and is still to come is no *mxerr.Error: it may be there later.
func (m *Media) Open(ctx context.Context, origin, mediaID string) (Blob, *store.Media, error) {
	f, err := m.serve(false).row(ctx, origin, mediaID, true)
	if err != nil {
		return nil, nil, err
	}
	if f.Expires != nil {
		return nil, nil, fmt.Errorf("the file %s is not uploaded yet", mediaID)
	}
	return m.content(ctx, f)
}

func (m *Media) content(ctx context.Context, f *store.Media) (Blob, *store.Media, error) {
	blob, err := m.Blobs.Open(ctx, hex.EncodeToString(f.SHA256))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, errUnknownMedia()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("open content: %w", err)
	}
	return blob, f, nil
}

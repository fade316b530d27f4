package media

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"time"
)

// Blobs keeps the bytes of files under keys: "<64 hex digits>" for contents, "<64 hex digits>-<suffix>" for what is made of
// them. What is stored under a key never changes.
type Blobs interface {
	// Create begins a new blob; its Commit gives it a key.
	Create(ctx context.Context) (BlobWriter, error)
	// Open reads a blob; the error is fs.ErrNotExist where there is none.
	Open(ctx context.Context, key string) (Blob, error)
	// DeleteUnused deletes a blob unless it was stored, or stored again, after the given time: who has just committed a key is
	// about to refer to it.
	DeleteUnused(ctx context.Context, key string, before time.Time) error
	// Clean removes what interrupted uploads left before the given time.
	Clean(ctx context.Context, before time.Time) error
}

// Blob is an open blob.
type Blob interface {
	io.ReadSeekCloser
}

// BlobWriter is a blob in the making. Exactly one of Commit and Abort ends it; Abort after Commit does nothing.
type BlobWriter interface {
	io.Writer
	// Commit stores what was written under the key; it is durable when Commit returns. A key that exists keeps its bytes.
	Commit(key string) error
	Abort()
}

var blobKey = regexp.MustCompile(`^[0-9a-f]{64}(-[0-9a-z.]{1,40})?$`)

// Local keeps blobs in files of one directory.
type Local struct{ dir string }

// OpenLocal prepares a directory for blobs, making it where needed.
func OpenLocal(dir string) (*Local, error) {
	if err := os.MkdirAll(filepath.Join(dir, "tmp"), 0o700); err != nil {
		return nil, fmt.Errorf("media directory: %w", err)
	}
	return &Local{dir}, nil
}

func (l *Local) path(key string) (string, error) {
	if !blobKey.MatchString(key) {
		return "", fmt.Errorf("%q is no key of a blob", key)
	}
	return filepath.Join(l.dir, key[:2], key[2:4], key), nil
}

// Open implements Blobs.
func (l *Local) Open(_ context.Context, key string) (Blob, error) {
	path, err := l.path(key)
	if err != nil {
		return nil, err
	}
	return os.Open(path)
}

// Create implements Blobs.
func (l *Local) Create(context.Context) (BlobWriter, error) {
	f, err := os.CreateTemp(filepath.Join(l.dir, "tmp"), "upload-*")
	if err != nil {
		return nil, fmt.Errorf("temporary file: %w", err)
	}
	return &localWriter{File: f, l: l}, nil
}

// DeleteUnused implements Blobs.
func (l *Local) DeleteUnused(_ context.Context, key string, before time.Time) error {
	path, err := l.path(key)
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || info.ModTime().After(before) {
		return err
	}
	made, err := filepath.Glob(path + "-*") // what was made of it
	if err != nil {
		return err
	}
	for _, m := range append(made, path) {
		if err := os.Remove(m); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Clean implements Blobs.
func (l *Local) Clean(_ context.Context, before time.Time) error {
	dir := filepath.Join(l.dir, "tmp")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || info.ModTime().After(before) {
			continue // gone meanwhile, or in use
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

type localWriter struct {
	*os.File
	l    *Local
	done bool
}

// Commit implements BlobWriter: file, then directory entries reach the disk.
func (w *localWriter) Commit(key string) (err error) {
	defer w.Abort()
	path, err := w.l.path(key)
	if err != nil {
		return err
	}
	now := time.Now()
	if err := os.Chtimes(path, now, now); err == nil {
		return syncDir(filepath.Dir(path)) // stored before (perhaps just now by another), and now safe from DeleteUnused
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := w.Sync(); err != nil {
		return fmt.Errorf("write to the disk: %w", err)
	}
	dir := filepath.Dir(path)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		for _, d := range []string{filepath.Dir(dir), w.l.dir} {
			if err := syncDir(d); err != nil {
				return err
			}
		}
	}
	if err := os.Rename(w.Name(), path); err != nil {
		return err
	}
	w.done = true
	if err := w.Close(); err != nil {
		return err
	}
	return syncDir(dir)
}

// Abort implements BlobWriter.
func (w *localWriter) Abort() {
	if w.done {
		return
	}
	w.done = true
	_ = w.Close()
	_ = os.Remove(w.Name()) // Clean takes what is left
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return d.Sync()
}

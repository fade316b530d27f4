package homeserver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

const (
	manifestFile   = "manifest.json"
	backupFormat   = 1
	backupMedia    = "media"
	backupDatabase = "database"
)

// manifest is written last: a directory without it is no backup.
type manifest struct {
	Format   int              `json:"format"`
	Created  time.Time        `json:"created"`
	Program  string           `json:"program"`
	Database store.BackupInfo `json:"database"`
	Files    []backupFile     `json:"files"`
}

// backupFile is a file of a backup with its SHA-256.
type backupFile struct {
	Path   string `json:"path"` // inside the backup, with slashes
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// Backup writes database (with the signing key in it) and media into a directory that is empty or not there, whether the
// server runs or not. The database is one consistent state; media are copied after it, so that all it names are there.
func Backup(ctx context.Context, cfg Config, log *slog.Logger, dir string) error {
	cfg.complete()
	if err := prepareBackupDir(cfg, dir); err != nil {
		return err
	}
	m := manifest{Format: backupFormat, Created: time.Now().UTC().Truncate(time.Second), Program: Version()}
	db := filepath.Join(dir, backupDatabase)
	if err := os.Mkdir(db, 0o700); err != nil {
		return err
	}
	var err error
	if m.Database, err = store.Backup(ctx, cfg.StoreConfig(), db); err != nil {
		return err
	}
	log.Info("the database was copied")
	if err := recordBackup(ctx, &cfg, log, dir, m.Database.Migrations); err != nil {
		return err
	}
	if err := copyMedia(ctx, cfg.Media.Path, filepath.Join(dir, backupMedia)); err != nil {
		return fmt.Errorf("back up media: %w", err)
	}
	if m.Files, err = listFiles(ctx, dir); err != nil {
		return err
	}
	log.Info("media were copied", "files", len(m.Files))
	b, err := json.Marshal(m, jsontext.WithIndent("  "))
	if err != nil {
		return err
	}
	return writeSynced(filepath.Join(dir, manifestFile), bytes.NewReader(b))
}

func prepareBackupDir(cfg Config, dir string) error {
	inside, err := isInside(dir, cfg.Media.Path)
	if err != nil {
		return err
	}
	if inside {
		return fmt.Errorf("%s lies inside the media directory, which is to be backed up", dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return checkEmpty(dir, "a backup is written into an empty directory only")
}

// checkEmpty tells that a directory has no entries, or is not there.
func checkEmpty(dir, why string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s is not empty: %s", dir, why)
	}
	return nil
}

func isInside(path, dir string) (bool, error) {
	p, err := filepath.Abs(path)
	if err != nil {
		return false, err
	}
	d, err := filepath.Abs(dir)
	if err != nil {
		return false, err
	}
	rel, err := filepath.Rel(d, p)
	return err == nil && filepath.IsLocal(rel), nil
}

// copyMedia copies a tree of files. A file that vanishes meanwhile was deleted by its owner.
func copyMedia(ctx context.Context, from, to string) error {
	err := filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		if e.IsDir() && rel == "tmp" {
			return fs.SkipDir // uploads that are not finished
		}
		if e.IsDir() {
			return os.MkdirAll(target, 0o700)
		}
		if !e.Type().IsRegular() {
			return nil
		}
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return errors.Join(writeSynced(target, f), f.Close())
	})
	return err
}

// writeSynced writes a file under another name, brings it to the disk and renames it.
func writeSynced(path string, src io.Reader) error {
	part := path + ".part"
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, src)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(part))
	}
	return os.Rename(part, path)
}

// listFiles sums up all files of a backup.
func listFiles(ctx context.Context, dir string) ([]backupFile, error) {
	var out []backupFile
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return errors.Join(err, ctx.Err())
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		f, err := sum(path)
		f.Path = filepath.ToSlash(rel)
		out = append(out, f)
		return err
	})
	return out, err
}

func sum(path string) (backupFile, error) {
	f, err := os.Open(path)
	if err != nil {
		return backupFile{}, err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	n, err := io.Copy(h, f)
	return backupFile{Size: n, SHA256: hex.EncodeToString(h.Sum(nil))}, err
}

// recordBackup notes in the audit log that somebody takes the server's data; it is called before there is a manifest, without
// which a directory is no backup.
func recordBackup(ctx context.Context, cfg *Config, log *slog.Logger, dir string, applied []int64) error {
	known, err := store.Migrations()
	if err != nil {
		return err
	}
	if len(known) != len(applied) {
		log.Warn("the backup is not noted in the audit log, because the database is of another version of moothall")
		return nil
	}
	st, err := store.Open(ctx, cfg.StoreConfig(), log)
	if err != nil {
		return err
	}
	for try := 0; ; try++ {
		err = recordCommand(ctx, cfg, st, log, audit.Entry{Action: "server.backup", Target: dir})
		if e := mxerr.As(err); e == nil || e.Status != http.StatusServiceUnavailable || try == 5 {
			return errors.Join(err, st.Close())
		}
		// SQLite is not fair to who waits while a server writes all the time.
	}
}

// Restore brings a backup back into an empty database and an empty media directory, after all of it was checked.
func Restore(ctx context.Context, cfg Config, log *slog.Logger, dir string) error {
	cfg.complete()
	m, err := readManifest(ctx, dir)
	if err != nil {
		return err
	}
	if m.Database.ServerName != cfg.ServerName {
		return fmt.Errorf("this is a backup of %q, but server_name is %q", m.Database.ServerName, cfg.ServerName)
	}
	if err := checkEmpty(cfg.Media.Path, "media are restored into an empty directory only"); err != nil {
		return err
	}
	if err := checkDataDir(cfg.DataDir); err != nil {
		return err
	}
	if err := store.Restore(ctx, cfg.StoreConfig(), filepath.Join(dir, backupDatabase), m.Database); err != nil {
		return err
	}
	log.Info("the database was restored")
	if err := copyMedia(ctx, filepath.Join(dir, backupMedia), cfg.Media.Path); err != nil {
		return fmt.Errorf("restore media: %w", err)
	}
	// Opening migrates what an older version wrote and shows that the server can start.
	st, err := store.Open(ctx, cfg.StoreConfig(), log)
	if err != nil {
		return err
	}
	err = recordCommand(ctx, &cfg, st, log, audit.Entry{
		Action: "server.restored", Details: map[string]any{"backup_of": m.Created.Format(time.RFC3339), "program": m.Program},
	})
	return errors.Join(err, st.Close())
}

// readManifest reads a backup's manifest and compares every file with it.
func readManifest(ctx context.Context, dir string) (manifest, error) {
	var m manifest
	b, err := os.ReadFile(filepath.Join(dir, manifestFile))
	if errors.Is(err, fs.ErrNotExist) {
		return m, fmt.Errorf("%s has no %s: it is no backup, or one that was not finished", dir, manifestFile)
	}
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("%s is damaged: %w", manifestFile, err)
	}
	if m.Format != backupFormat {
		return m, fmt.Errorf("the backup has format %d, this version of moothall knows %d", m.Format, backupFormat)
	}
	listed := map[string]bool{}
	for _, want := range m.Files {
		if err := ctx.Err(); err != nil {
			return m, err
		}
		if !filepath.IsLocal(filepath.FromSlash(want.Path)) {
			return m, fmt.Errorf("%s names %q outside of the backup", manifestFile, want.Path)
		}
		got, err := sum(filepath.Join(dir, filepath.FromSlash(want.Path)))
		if err != nil {
			return m, fmt.Errorf("the backup is not complete: %w", err)
		}
		if got.Size != want.Size || got.SHA256 != want.SHA256 {
			return m, fmt.Errorf("%s was changed since the backup was made (its checksum differs)", want.Path)
		}
		listed[want.Path] = true
	}
	return m, checkListed(dir, listed)
}

// checkListed refuses media that the manifest does not know: they would be restored unchecked.
func checkListed(dir string, listed map[string]bool) error {
	media := filepath.Join(dir, backupMedia)
	return filepath.WalkDir(media, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) && path == media {
				return nil
			}
			return err
		}
		rel := backupMedia + "/" + filepath.ToSlash(strings.TrimPrefix(strings.TrimPrefix(path, media), string(filepath.Separator)))
		if !e.IsDir() && !listed[rel] {
			return fmt.Errorf("%s is not part of the backup", rel)
		}
		return nil
	})
}

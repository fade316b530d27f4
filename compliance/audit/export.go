package audit

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/moothall/moothall/homeserver/store"
)

const exportTimeout = 10 * time.Second

// exporter sends entries to a collector. It belongs to the goroutine of Run.
type exporter struct{ conn net.Conn }

// CheckExport tells what is wrong with a Config.Export.
func CheckExport(to string) error {
	if to == "" || to == "log" {
		return nil
	}
	u, err := url.Parse(to)
	if err != nil {
		return err
	}
	switch u.Scheme {
	case "udp", "tcp", "tls":
		if _, _, err := net.SplitHostPort(u.Host); err != nil {
			return fmt.Errorf("%s needs a host and a port: %w", to, err)
		}
		return nil
	case "unix":
		if u.Path == "" {
			return fmt.Errorf("%s needs the path of a socket", to)
		}
		return nil
	}
	return fmt.Errorf("%q is none of log, udp://host:port, tcp://host:port, tls://host:port, unix:///path", to)
}

// export sends the batches that were not sent yet. After a failure the same entries are sent again; each has its id.
func (l *Log) export(ctx context.Context) error {
	if l.Config.Export == "" {
		return nil
	}
	for {
		var batches []store.AuditBatch
		var rows []store.AuditEntry
		err := l.Store.Read(ctx, func(tx *store.Tx) error {
			head, found, err := tx.AuditHead()
			if err != nil || !found {
				return err
			}
			batches, err = tx.AuditBatches(max(head.Exported, head.Anchor), 1)
			if err == nil && len(batches) > 0 {
				rows, err = tx.AuditOfBatch(batches[0].Number)
			}
			return err
		})
		if err != nil || len(batches) == 0 {
			return err
		}
		if err := l.sendBatch(ctx, &batches[0], rows); err != nil {
			l.exporter.close()
			return fmt.Errorf("export the audit log to %s: %w", l.Config.Export, err)
		}
		err = l.Store.Write(ctx, func(tx *store.Tx) error { return tx.SetAuditExported(batches[0].Number) })
		if err != nil {
			return err
		}
	}
}

func (l *Log) sendBatch(ctx context.Context, b *store.AuditBatch, rows []store.AuditEntry) error {
	for i := range rows {
		e, err := stored(&rows[i])
		if err != nil {
			return err
		}
		line, err := e.MarshalJSON()
		if err != nil {
			return err
		}
		if err := l.send(ctx, e.Time, "entry", line); err != nil {
			return err
		}
	}
	// With the hash of each batch kept elsewhere nobody can rewrite the chain unseen, not even with the server's key.
	line, err := json.Marshal(map[string]any{"head": fmt.Sprintf("%d:%x", b.Number, b.Hash), "entries": b.Count}, json.Deterministic(true))
	if err != nil {
		return err
	}
	return l.send(ctx, b.Created, "head", line)
}

func (l *Log) send(ctx context.Context, ms int64, kind string, line []byte) error {
	if l.Config.Export == "log" {
		l.Logger.LogAttrs(ctx, slog.LevelInfo, "audit", slog.String("kind", kind), slog.String("audit", string(line)))
		return nil
	}
	return l.exporter.send(ctx, l.Config.Export, syslogMessage(ms, l.ServerName, kind, line))
}

// syslogMessage writes a message of RFC 5424: facility 13 (log audit), severity 5 (notice).
func syslogMessage(ms int64, host, kind string, line []byte) []byte {
	at := time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z")
	host = strings.Map(func(c rune) rune {
		if c <= ' ' || c > '~' {
			return '-'
		}
		return c
	}, host)
	return fmt.Appendf(nil, "<%d>1 %s %s moothall %d %s - %s", 13*8+5, at, host, os.Getpid(), kind, line)
}

func (x *exporter) send(ctx context.Context, to string, msg []byte) error {
	u, err := url.Parse(to)
	if err != nil {
		return err
	}
	if x.conn == nil {
		if x.conn, err = dial(ctx, u); err != nil {
			x.conn = nil
			return err
		}
	}
	if u.Scheme == "tcp" || u.Scheme == "tls" {
		msg = append(fmt.Appendf(nil, "%d ", len(msg)), msg...) // RFC 6587 octet counting
	}
	if err := x.conn.SetWriteDeadline(time.Now().Add(exportTimeout)); err != nil {
		return err
	}
	_, err = x.conn.Write(msg)
	return err
}

func dial(ctx context.Context, u *url.URL) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, exportTimeout)
	defer cancel()
	var d net.Dialer
	switch u.Scheme {
	case "unix":
		return d.DialContext(ctx, "unixgram", u.Path)
	case "tls":
		host, _, err := net.SplitHostPort(u.Host)
		if err != nil {
			return nil, err
		}
		secure := tls.Dialer{NetDialer: &d, Config: &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}}
		return secure.DialContext(ctx, "tcp", u.Host)
	}
	return d.DialContext(ctx, u.Scheme, u.Host)
}

func (x *exporter) close() {
	if x.conn != nil {
		_ = x.conn.Close() // nothing is lost: what was not noted as sent is sent again
		x.conn = nil
	}
}

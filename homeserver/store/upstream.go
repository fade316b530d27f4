package store

import (
	"fmt"

	"maunium.net/go/mautrix/id"
)

// UpstreamSession says which session at an identity provider opened a session here: that of a device, or of a browser on
// our own pages.
type UpstreamSession struct {
	User     id.UserID
	Device   id.DeviceID // "" for a browser
	Browser  string      // "" for a device
	Provider string
	Subject  string
	SID      string // "": the provider gave none
	IDToken  Content
	Created  int64 // ms
}

const upstreamColumns = `usr, device_id, browser, provider, subject, sid, id_token, created`

func (u *UpstreamSession) dest() []any {
	return []any{&u.User, &u.Device, &u.Browser, &u.Provider, &u.Subject, &u.SID, &u.IDToken, &u.Created}
}

// PutUpstreamSession notes it, in the place of an earlier one of the same device or browser.
func (tx *Tx) PutUpstreamSession(u UpstreamSession) error {
	_, err := tx.Exec(`INSERT INTO upstream_sessions (`+upstreamColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
		ON CONFLICT (usr, device_id, browser) DO UPDATE SET provider = excluded.provider, subject = excluded.subject,
		sid = excluded.sid, id_token = excluded.id_token, created = excluded.created`,
		u.User, u.Device, u.Browser, u.Provider, u.Subject, u.SID, u.IDToken, u.Created)
	if err != nil {
		return fmt.Errorf("note the session of %s at %s: %w", u.User, u.Provider, err)
	}
	return nil
}

// UpstreamSessions lists what a session at a provider opened; by subject where sid is "".
func (tx *Tx) UpstreamSessions(provider, subject, sid string) ([]UpstreamSession, error) {
	sql, arg := `SELECT `+upstreamColumns+` FROM upstream_sessions WHERE provider = $1 AND sid = $2`, sid
	if sid == "" {
		sql, arg = `SELECT `+upstreamColumns+` FROM upstream_sessions WHERE provider = $1 AND subject = $2`, subject
	}
	return tx.upstreamSessions(sql, provider, arg)
}

// UpstreamBrowser lists the notes of a browser session: one, or none if it came in another way.
func (tx *Tx) UpstreamBrowser(browser string) ([]UpstreamSession, error) {
	return tx.upstreamSessions(`SELECT `+upstreamColumns+` FROM upstream_sessions WHERE browser = $1`, browser)
}

func (tx *Tx) upstreamSessions(sql string, args ...any) ([]UpstreamSession, error) {
	var out []UpstreamSession
	err := tx.Each(sql, args, func(r *Row) error {
		var u UpstreamSession
		if err := r.Scan(u.dest()...); err != nil {
			return err
		}
		out = append(out, u)
		return nil
	})
	return out, err
}

// DeleteUpstreamSession forgets what is noted of a device or a browser.
func (tx *Tx) DeleteUpstreamSession(user id.UserID, device id.DeviceID, browser string) error {
	_, err := tx.Exec(`DELETE FROM upstream_sessions WHERE usr = $1 AND device_id = $2 AND browser = $3`, user, device, browser)
	return err
}

// MarkSeen notes that something came; false means that it had come before.
func (tx *Tx) MarkSeen(what string, expires int64) (bool, error) {
	n, err := tx.Exec(`INSERT INTO upstream_seen (id, expires) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING`, what, expires)
	return n > 0, err
}

// WasSeen tells whether something came before.
func (tx *Tx) WasSeen(what string) (bool, error) {
	var one int64
	return tx.Get([]any{&one}, `SELECT 1 FROM upstream_seen WHERE id = $1`, what)
}

// InsertHandover keeps what a browser fetches once.
func (tx *Tx) InsertHandover(h TokenHash, provider string, data []byte, expires int64) error {
	_, err := tx.Exec(`INSERT INTO upstream_handovers (id, provider, data, expires) VALUES ($1, $2, $3, $4)`, h[:], provider, Content(data), expires)
	return err
}

// TakeHandover removes what was kept; false means that there is nothing that is still good.
func (tx *Tx) TakeHandover(h TokenHash, provider string, now int64) ([]byte, bool, error) {
	var data Content
	var expires int64
	found, err := tx.Get([]any{&data, &expires}, `DELETE FROM upstream_handovers WHERE id = $1 AND provider = $2 RETURNING data, expires`, h[:], provider)
	return data, found && expires > now, err
}

// SweepUpstream drops what has expired, and notes of browsers from before a time.
func (tx *Tx) SweepUpstream(now, browsersBefore int64) error {
	for _, sql := range []string{`DELETE FROM upstream_seen WHERE expires <= $1`, `DELETE FROM upstream_handovers WHERE expires <= $1`} {
		if _, err := tx.Exec(sql, now); err != nil {
			return err
		}
	}
	_, err := tx.Exec(`DELETE FROM upstream_sessions WHERE device_id = '' AND created < $1`, browsersBefore)
	return err
}

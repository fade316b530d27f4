package store

import (
	"errors"
	"fmt"
	"strings"

	"maunium.net/go/mautrix/id"
)

// AuditEntry is a row of the audit log, as it is stored.
type AuditEntry struct {
	ID      string
	Time    int64 // ms
	Actor   id.UserID
	Kind    string
	Device  id.DeviceID
	Session string
	IP      string
	Agent   string
	Action  string
	Target  string
	Result  string
	Reason  string
	Body    Content // JSON, nil: none
	Batch   int64   // 0: not yet in the chain
}

const auditColumns = `id, ts, actor, kind, device, session, ip, agent, action, target, result, reason, body, coalesce(batch, 0)`

func (e *AuditEntry) dest() []any {
	return []any{&e.ID, &e.Time, &e.Actor, &e.Kind, &e.Device, &e.Session, &e.IP, &e.Agent, &e.Action, &e.Target, &e.Result, &e.Reason, &e.Body, &e.Batch}
}

// InsertAudit adds an entry to the audit log.
func (tx *Tx) InsertAudit(e AuditEntry) error {
	_, err := tx.Exec(`INSERT INTO audit_log (id, ts, actor, kind, device, session, ip, agent, action, target, result, reason, body)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`,
		e.ID, e.Time, e.Actor, e.Kind, e.Device, e.Session, e.IP, e.Agent, e.Action, e.Target, e.Result, e.Reason, e.Body)
	if err != nil {
		return fmt.Errorf("write the audit log: %w", err)
	}
	return nil
}

// AuditFilter chooses entries of the audit log; what is empty chooses all.
type AuditFilter struct {
	Actor   id.UserID
	Target  string
	Kind    string
	IP      string
	Result  string
	Actions []string // whole actions, or groups of them: "signin" is "signin" and every "signin.…"
	// After and Before bound the ids, exclusively.
	After, Before string
}

// AuditEntries reads up to limit entries, newest first, or oldest first.
func (tx *Tx) AuditEntries(f AuditFilter, oldestFirst bool, limit int) ([]AuditEntry, error) {
	var args []any
	var where []string
	cond := func(sql string, arg any) {
		args = append(args, arg)
		where = append(where, fmt.Sprintf(sql, len(args)))
	}
	for _, c := range []struct{ sql, arg string }{
		{"actor = $%d", string(f.Actor)}, {"target = $%d", f.Target}, {"kind = $%d", f.Kind}, {"ip = $%d", f.IP},
		{"result = $%d", f.Result}, {"id > $%d", f.After}, {"id < $%d", f.Before},
	} {
		if c.arg != "" {
			cond(c.sql, c.arg)
		}
	}
	if len(f.Actions) > 0 {
		var or []string
		for _, a := range f.Actions {
			// "/" is the character behind "."
			args = append(args, a, a+".", a+"/")
			or = append(or, fmt.Sprintf("action = $%d OR (action >= $%d AND action < $%d)", len(args)-2, len(args)-1, len(args)))
		}
		where = append(where, "("+strings.Join(or, " OR ")+")")
	}
	sql := `SELECT ` + auditColumns + ` FROM audit_log`
	if len(where) > 0 {
		sql += ` WHERE ` + strings.Join(where, ` AND `)
	}
	order := "DESC"
	if oldestFirst {
		order = "ASC"
	}
	args = append(args, limit)
	sql += fmt.Sprintf(` ORDER BY id %s LIMIT $%d`, order, len(args))
	return tx.auditEntries(sql, args...)
}

func (tx *Tx) auditEntries(sql string, args ...any) ([]AuditEntry, error) {
	return list(tx, (*AuditEntry).dest, sql, args...)
}

// AuditPending reads the oldest entries that are not in the chain yet.
func (tx *Tx) AuditPending(limit int) ([]AuditEntry, error) {
	return tx.auditEntries(`SELECT `+auditColumns+` FROM audit_log WHERE batch IS NULL ORDER BY id LIMIT $1`, limit)
}

// CountAuditPending counts the entries that are not in the chain yet.
func (tx *Tx) CountAuditPending() (int64, error) {
	var n int64
	_, err := tx.Get([]any{&n}, `SELECT count(*) FROM audit_log WHERE batch IS NULL`)
	return n, err
}

// AuditOfBatch reads the entries of one batch by their ids.
func (tx *Tx) AuditOfBatch(number int64) ([]AuditEntry, error) {
	return tx.auditEntries(`SELECT `+auditColumns+` FROM audit_log WHERE batch = $1 ORDER BY id`, number)
}

// AuditStrays counts the entries of batches that are not in the kept part of the chain.
func (tx *Tx) AuditStrays(anchor, head int64) (first string, n int64, err error) {
	_, err = tx.Get([]any{&first, &n}, `SELECT coalesce(min(id), ''), count(*) FROM audit_log WHERE batch <= $1 OR batch > $2`, anchor, head)
	return first, n, err
}

// AuditBatch is a link of the chain.
type AuditBatch struct {
	Number          int64
	FirstTS, LastTS int64 // of its entries, ms
	Count           int64
	Created         int64 // ms
	Leaves          []byte
	Prev            []byte
	Hash            []byte
	KeyID           string
	Signature       []byte
}

const auditBatchColumns = `number, first_ts, last_ts, count, created, leaves, prev, hash, key_id, signature`

func (b *AuditBatch) dest() []any {
	return []any{&b.Number, &b.FirstTS, &b.LastTS, &b.Count, &b.Created, &b.Leaves, &b.Prev, &b.Hash, &b.KeyID, &b.Signature}
}

// AuditHead is the state of the chain: see the table.
type AuditHead struct {
	Number          int64
	Hash            []byte
	Anchor          int64
	AnchorHash      []byte
	AnchorLastTS    int64
	AnchorAt        int64
	AnchorKeyID     string
	AnchorSignature []byte
	Exported        int64
}

const auditHeadColumns = `number, hash, anchor, anchor_hash, anchor_last_ts, anchor_at, anchor_key_id, anchor_signature, exported`

func (h *AuditHead) dest() []any {
	return []any{&h.Number, &h.Hash, &h.Anchor, &h.AnchorHash, &h.AnchorLastTS, &h.AnchorAt, &h.AnchorKeyID, &h.AnchorSignature, &h.Exported}
}

// InitAuditHead makes the chain's one row, for a chain that has no batch yet and begins behind hash.
func (tx *Tx) InitAuditHead(hash []byte) error {
	_, err := tx.Exec(`INSERT INTO audit_head (id, number, hash, anchor, anchor_hash, anchor_last_ts, anchor_at, anchor_key_id, anchor_signature, exported)
		VALUES (1, 0, $1, 0, $1, 0, 0, '', $2, 0) ON CONFLICT (id) DO NOTHING`, hash, []byte{})
	return err
}

// AuditHead reads the chain's state; false where nothing was chained yet.
func (tx *Tx) AuditHead() (AuditHead, bool, error) {
	var h AuditHead
	found, err := tx.Get(h.dest(), `SELECT `+auditHeadColumns+` FROM audit_head WHERE id = 1`)
	return h, found, err
}

// LockAuditHead is AuditHead for a transaction that changes the chain: one at a time, on all nodes.
func (tx *Tx) LockAuditHead() (AuditHead, error) {
	var h AuditHead
	found, err := tx.Get(h.dest(), `SELECT `+auditHeadColumns+` FROM audit_head WHERE id = 1 @forupdate`)
	if err == nil && !found {
		err = errors.New("the audit log's head is missing")
	}
	return h, err
}

// AddAuditBatch appends a batch to the chain and puts the entries into it. An entry that is in another batch already is an
// error.
func (tx *Tx) AddAuditBatch(b AuditBatch, ids []string) error {
	_, err := tx.Exec(`INSERT INTO audit_batches (`+auditBatchColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
		b.Number, b.FirstTS, b.LastTS, b.Count, b.Created, b.Leaves, b.Prev, b.Hash, b.KeyID, b.Signature)
	if err != nil {
		return fmt.Errorf("insert batch %d of the audit log: %w", b.Number, err)
	}
	n, err := tx.Exec(`UPDATE audit_log SET batch = $1 WHERE batch IS NULL AND id IN @text($2)`, b.Number, ids)
	if err == nil && n != int64(len(ids)) {
		err = fmt.Errorf("batch %d of the audit log: %d of %d entries could be had", b.Number, n, len(ids))
	}
	if err != nil {
		return err
	}
	_, err = tx.Exec(`UPDATE audit_head SET number = $1, hash = $2 WHERE id = 1`, b.Number, b.Hash)
	return err
}

// AuditBatches reads up to limit batches behind one, in order.
func (tx *Tx) AuditBatches(after int64, limit int) ([]AuditBatch, error) {
	return list(tx, (*AuditBatch).dest, `SELECT `+auditBatchColumns+` FROM audit_batches WHERE number > $1 ORDER BY number LIMIT $2`, after, limit)
}

// CutAudit removes a batch that is the first of the kept part, and moves the anchor behind it.
func (tx *Tx) CutAudit(h AuditHead) error {
	if _, err := tx.Exec(`DELETE FROM audit_log WHERE batch = $1`, h.Anchor); err != nil {
		return err
	}
	if _, err := tx.Exec(`DELETE FROM audit_batches WHERE number = $1`, h.Anchor); err != nil {
		return err
	}
	_, err := tx.Exec(`UPDATE audit_head SET anchor = $1, anchor_hash = $2, anchor_last_ts = $3, anchor_at = $4, anchor_key_id = $5, anchor_signature = $6
		WHERE id = 1`, h.Anchor, h.AnchorHash, h.AnchorLastTS, h.AnchorAt, h.AnchorKeyID, h.AnchorSignature)
	return err
}

// SetAuditExported notes up to which batch the log was exported.
func (tx *Tx) SetAuditExported(number int64) error {
	_, err := tx.Exec(`UPDATE audit_head SET exported = $1 WHERE id = 1 AND exported < $1`, number)
	return err
}

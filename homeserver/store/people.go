package store

import (
	"fmt"

	"maunium.net/go/mautrix/id"
)

// ExternalID says who an account is in a directory, for a provisioning client or at an identity provider.
type ExternalID struct {
	Source, ID string
	User       id.UserID
	Created    int64   // ms
	Active     bool    // the source says that the person is there
	Reason     string  // why not, where it does not
	Person     Content // what the source said last, JSON; nil: nothing
}

const externalColumns = `source, external_id, usr, created, active, reason, person`

func (e *ExternalID) dest() []any {
	return []any{&e.Source, &e.ID, &e.User, &e.Created, &e.Active, &e.Reason, &e.Person}
}

// ExternalID finds whose an id of a source is.
func (tx *Tx) ExternalID(source, externalID string) (ExternalID, bool, error) {
	var e ExternalID
	found, err := tx.Get(e.dest(), `SELECT `+externalColumns+` FROM external_ids WHERE source = $1 AND external_id = $2`, source, externalID)
	return e, found, err
}

// ExternalIDs lists who a user is elsewhere, by source.
func (tx *Tx) ExternalIDs(user id.UserID) ([]ExternalID, error) {
	var out []ExternalID
	err := tx.Each(`SELECT `+externalColumns+` FROM external_ids WHERE usr = $1 ORDER BY source, external_id`, []any{user}, func(r *Row) error {
		var e ExternalID
		if err := r.Scan(e.dest()...); err != nil {
			return err
		}
		out = append(out, e)
		return nil
	})
	return out, err
}

// EachExternalID gives all ids of a source, without what it said of them.
func (tx *Tx) EachExternalID(source string, fn func(ExternalID)) error {
	return tx.Each(`SELECT external_id, usr, created, active, reason FROM external_ids WHERE source = $1`, []any{source}, func(r *Row) error {
		e := ExternalID{Source: source}
		if err := r.Scan(&e.ID, &e.User, &e.Created, &e.Active, &e.Reason); err != nil {
			return err
		}
		fn(e)
		return nil
	})
}

// InsertExternalID links an account; false means that the id is linked already.
func (tx *Tx) InsertExternalID(e ExternalID) (bool, error) {
	n, err := tx.Exec(`INSERT INTO external_ids (source, external_id, usr, created, active, reason, person) VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (source, external_id) DO NOTHING`, e.Source, e.ID, e.User, e.Created, e.Active, e.Reason, e.Person)
	if err != nil {
		return false, fmt.Errorf("link %s to %s of %s: %w", e.User, e.ID, e.Source, err)
	}
	return n > 0, nil
}

// SetExternalPerson stores what a source said of a person.
func (tx *Tx) SetExternalPerson(source, externalID string, person Content) error {
	_, err := tx.Exec(`UPDATE external_ids SET person = $3 WHERE source = $1 AND external_id = $2`, source, externalID, person)
	return err
}

// SetExternalActive stores whether a source says that the person is there, and why not.
func (tx *Tx) SetExternalActive(source, externalID string, active bool, reason string) error {
	_, err := tx.Exec(`UPDATE external_ids SET active = $3, reason = $4 WHERE source = $1 AND external_id = $2`, source, externalID, active, reason)
	return err
}

// DeleteExternalID takes a link away; false means that there was none.
func (tx *Tx) DeleteExternalID(source, externalID string) (bool, error) {
	n, err := tx.Exec(`DELETE FROM external_ids WHERE source = $1 AND external_id = $2`, source, externalID)
	return n > 0, err
}

// SetUserDisabled bars an account since a time, or no longer (0); false means that there is no such account.
func (tx *Tx) SetUserDisabled(user id.UserID, since int64) (bool, error) {
	n, err := tx.Exec(`UPDATE users SET disabled = $2 WHERE user_id = $1`, user, since)
	return n > 0, err
}

// DisabledBefore lists accounts that have been barred since before a time and are not deactivated yet.
func (tx *Tx) DisabledBefore(before int64, limit int) ([]id.UserID, error) {
	var out []id.UserID
	err := tx.Each(`SELECT user_id FROM users WHERE disabled <> 0 AND disabled < $1 AND deactivated = 0 ORDER BY disabled LIMIT $2`,
		[]any{before, limit}, func(r *Row) error {
			var u id.UserID
			if err := r.Scan(&u); err != nil {
				return err
			}
			out = append(out, u)
			return nil
		})
	return out, err
}

package people

import (
	"context"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/store"
)

// act is something done to an account in the name of a source.
type act struct {
	source, externalID string
	person             *Person // fills source and externalID
	user               id.UserID
	what               string // created, updated, linked, unlinked, disabled, enabled, deactivated
	reason             string
	before, after      any
	fields             []string
}

// ActionPrefix begins the names of all audit entries about persons.
const ActionPrefix = "person"

// note writes the audit entry in the transaction of the act: no entry, no act.
func (p *People) note(ctx context.Context, tx *store.Tx, a act) error {
	if a.person != nil {
		a.source, a.externalID = a.person.Source, a.person.ExternalID
	}
	details := map[string]any{}
	if a.source != "" {
		details["source"], details["external_id"] = a.source, a.externalID
	}
	if len(a.fields) > 0 {
		details["fields"] = a.fields
	}
	return audit.Append(ctx, tx, audit.Entry{
		Action: ActionPrefix + "." + a.what, Target: string(a.user), Result: audit.OK, Reason: a.reason,
		Before: a.before, After: a.after, Details: details,
	})
}

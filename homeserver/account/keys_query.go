package account

import (
	"context"
	"maps"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/store"
)

// KeyQuery is the answer to /keys/query.
type KeyQuery struct {
	Failures        map[string]ServerFailure                     `json:"failures"`
	DeviceKeys      map[id.UserID]map[id.DeviceID]jsontext.Value `json:"device_keys"`
	MasterKeys      map[id.UserID]jsontext.Value                 `json:"master_keys"`
	SelfSigningKeys map[id.UserID]jsontext.Value                 `json:"self_signing_keys"`
	UserSigningKeys map[id.UserID]jsontext.Value                 `json:"user_signing_keys"`
}

// ServerFailure says why another server's keys are missing.
type ServerFailure struct {
	Message string `json:"message"`
}

var errNoFederation = ServerFailure{"this server does not reach other servers"}

// splitServers sorts users by whether they are of this server, and notes the servers of the others.
func (k *Keys) splitServers(users []id.UserID) (local []string, failures map[string]ServerFailure, err error) {
	failures = map[string]ServerFailure{}
	for _, user := range users {
		ours, server, err := isLocal(k.ServerName, user)
		switch {
		case err != nil:
			return nil, nil, err
		case ours:
			local = append(local, string(user))
		default:
			failures[server] = errNoFederation
		}
	}
	return local, failures, nil
}

// Query reads identity and cross-signing keys, as viewer may see them. An empty list of devices stands for all of a
// user's. Unknown users and devices are missing from the answer.
// Spec: client-server API, POST /keys/query and "Key and signature security".
func (k *Keys) Query(ctx context.Context, viewer id.UserID, wanted map[id.UserID][]id.DeviceID) (*KeyQuery, error) {
	out := &KeyQuery{
		DeviceKeys:      map[id.UserID]map[id.DeviceID]jsontext.Value{},
		MasterKeys:      map[id.UserID]jsontext.Value{},
		SelfSigningKeys: map[id.UserID]jsontext.Value{},
		UserSigningKeys: map[id.UserID]jsontext.Value{},
	}
	users, failures, err := k.splitServers(slices.Sorted(maps.Keys(wanted)))
	if err != nil {
		return nil, err
	}
	out.Failures = failures
	if len(users) == 0 {
		return out, nil
	}
	var existing map[id.UserID]bool
	var devices []store.DeviceKeys
	var crossSigning []store.CrossSigningKey
	var signatures []store.KeySignature
	err = k.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		if existing, err = tx.ExistingUsers(users); err != nil {
			return err
		}
		if devices, err = tx.DeviceKeys(users); err != nil {
			return err
		}
		if crossSigning, err = tx.CrossSigningKeys(users); err != nil {
			return err
		}
		signatures, err = tx.KeySignatures(users, viewer)
		return err
	})
	if err != nil {
		return nil, err
	}
	added := make(map[keyTarget][]store.KeySignature, len(signatures))
	for _, s := range signatures {
		t := keyTarget{s.User, s.Target}
		added[t] = append(added[t], s)
	}
	for user := range existing {
		out.DeviceKeys[user] = map[id.DeviceID]jsontext.Value{}
	}
	for _, d := range devices {
		if only := wanted[d.User]; len(only) > 0 && !slices.Contains(only, d.Device) || out.DeviceKeys[d.User] == nil {
			continue
		}
		body := withSignatures(d.Body, d.User, viewer, added[keyTarget{d.User, string(d.Device)}])
		out.DeviceKeys[d.User][d.Device] = withDisplayName(body, d.DisplayName)
	}
	for _, c := range crossSigning {
		body := withSignatures(c.Body, c.User, viewer, added[keyTarget{c.User, c.Key}])
		switch {
		case c.Usage == usageMaster:
			out.MasterKeys[c.User] = body
		case c.Usage == usageSelfSigning:
			out.SelfSigningKeys[c.User] = body
		case c.User == viewer:
			out.UserSigningKeys[c.User] = body
		}
	}
	return out, nil
}

type keyTarget struct {
	user   id.UserID
	target string
}

// withSignatures renders a stored key with those of its signatures that viewer may see: of its owner and of viewer.
func withSignatures(body []byte, owner, viewer id.UserID, added []store.KeySignature) jsontext.Value {
	all := map[id.UserID]map[string]string{}
	add := func(signer id.UserID, keyID, signature string) {
		if signer != owner && signer != viewer {
			return
		}
		if all[signer] == nil {
			all[signer] = map[string]string{}
		}
		all[signer][keyID] = signature
	}
	gjson.GetBytes(body, "signatures").ForEach(func(signer, list gjson.Result) bool {
		list.ForEach(func(keyID, signature gjson.Result) bool {
			add(id.UserID(signer.String()), keyID.String(), signature.String())
			return true
		})
		return true
	})
	for _, s := range added {
		add(s.Signer, s.KeyID, s.Signature)
	}
	if len(all) == 0 {
		return without(body, "signatures")
	}
	return withMember(without(body, "signatures"), "signatures", all)
}

// withDisplayName adds what the server knows of a device, which no signature covers.
func withDisplayName(body jsontext.Value, name *string) jsontext.Value {
	if name == nil {
		return body
	}
	return withMember(body, "unsigned", map[string]string{"device_display_name": *name})
}

// withMember appends a member to a JSON object that has none of this name.
func withMember(obj []byte, name string, value any) jsontext.Value {
	raw, err := json.Marshal(value, json.Deterministic(true), jsontext.AllowInvalidUTF8(true))
	if err != nil {
		return obj // maps of strings always marshal
	}
	out := append(make([]byte, 0, len(obj)+len(name)+len(raw)+4), obj[:len(obj)-1]...)
	if len(obj) > 2 {
		out = append(out, ',')
	}
	out = append(append(append(out, '"'), name...), '"', ':')
	return append(append(out, raw...), '}')
}

// DeviceListChangedSince lists the users of whom viewer's clients may know old keys, since a position and up to another:
// those whose devices or cross-signing keys changed, and those whose keys viewer signed. The caller leaves out whom
// viewer shares no room with.
func (k *Keys) DeviceListChangedSince(ctx context.Context, viewer id.UserID, since, upto int64) ([]id.UserID, error) {
	var out []id.UserID
	err := k.Store.Read(ctx, func(tx *store.Tx) error {
		changed, err := tx.DeviceListChanges(since, upto)
		if err != nil {
			return err
		}
		signed, err := tx.SignedChanges(viewer, since, upto)
		out = append(changed, signed...)
		return err
	})
	slices.Sort(out)
	return slices.Compact(out), err
}

// Changes answers /keys/changes: users who share a room with viewer and whose keys viewer may not know since a position,
// viewer included, and users who share none any more.
func (k *Keys) Changes(ctx context.Context, viewer id.UserID, since int64) (changed, left []id.UserID, err error) {
	err = k.Store.Read(ctx, func(tx *store.Tx) error {
		shared, err := tx.SharedDeviceListChanges(viewer, since)
		if err != nil {
			return err
		}
		signed, err := tx.SignedChanges(viewer, since, maxPosition)
		if err != nil {
			return err
		}
		changed = append(shared, signed...)
		// A user without a room still has devices that need to know of each other.
		own, err := tx.DeviceListChangedAfter(viewer, since)
		if err != nil {
			return err
		}
		if own {
			changed = append(changed, viewer)
		}
		left, err = tx.LeftDeviceLists(viewer, since)
		return err
	})
	slices.Sort(changed)
	return slices.Compact(changed), left, err
}

// maxPosition is beyond every position of the log.
const maxPosition = 1<<63 - 1

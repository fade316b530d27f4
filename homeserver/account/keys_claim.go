package account

import (
	"context"
	"maps"
	"slices"

	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// KeyClaim is the answer to /keys/claim.
type KeyClaim struct {
	Failures    map[string]ServerFailure                                `json:"failures"`
	OneTimeKeys map[id.UserID]map[id.DeviceID]map[string]jsontext.Value `json:"one_time_keys"`
}

const maxClaims = 10_000 // keys in one request

// Claim takes one key of the named algorithm from each device: a one-time key, which nobody else ever gets, or else the
// fallback key. Devices that have neither are missing from the answer.
// Spec: client-server API, POST /keys/claim.
func (k *Keys) Claim(ctx context.Context, wanted map[id.UserID]map[id.DeviceID]string) (*KeyClaim, error) {
	local, failures, err := k.splitServers(slices.Sorted(maps.Keys(wanted)))
	if err != nil {
		return nil, err
	}
	byAlgorithm := map[string][]store.DeviceID{}
	n := 0
	for _, user := range local {
		devices := wanted[id.UserID(user)]
		for _, device := range slices.Sorted(maps.Keys(devices)) {
			algorithm := devices[device]
			byAlgorithm[algorithm] = append(byAlgorithm[algorithm], store.DeviceID{User: id.UserID(user), Device: device})
			n++
		}
	}
	if n > maxClaims {
		return nil, mxerr.InvalidParam("'one_time_keys' names too many devices for one request")
	}
	out := &KeyClaim{Failures: failures, OneTimeKeys: map[id.UserID]map[id.DeviceID]map[string]jsontext.Value{}}
	if n == 0 {
		return out, nil
	}
	var claimed []store.OneTimeKey
	err = k.Store.Write(ctx, func(tx *store.Tx) error {
		claimed = claimed[:0]
		var changed []store.DeviceID
		for _, algorithm := range slices.Sorted(maps.Keys(byAlgorithm)) {
			keys, fresh, err := claimAlgorithm(tx, byAlgorithm[algorithm], algorithm)
			if err != nil {
				return err
			}
			claimed = append(claimed, keys...)
			changed = append(changed, fresh...)
		}
		for _, d := range changed {
			if err := tx.AnnounceKeys(d.User, d.Device); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, c := range claimed {
		if out.OneTimeKeys[c.User] == nil {
			out.OneTimeKeys[c.User] = map[id.DeviceID]map[string]jsontext.Value{}
		}
		out.OneTimeKeys[c.User][c.Device] = map[string]jsontext.Value{c.Algorithm + ":" + c.KeyID: jsontext.Value(c.Body)}
	}
	return out, nil
}

// claimAlgorithm claims keys of one algorithm and returns the devices that have to be told.
func claimAlgorithm(tx *store.Tx, devices []store.DeviceID, algorithm string) (keys []store.OneTimeKey, changed []store.DeviceID, err error) {
	keys, err = tx.ClaimOneTimeKeys(devices, algorithm)
	if err != nil {
		return nil, nil, err
	}
	served := make(map[store.DeviceID]bool, len(keys))
	for _, c := range keys {
		d := store.DeviceID{User: c.User, Device: c.Device}
		served[d] = true
		changed = append(changed, d)
	}
	var rest []store.DeviceID
	for _, d := range devices {
		if !served[d] {
			rest = append(rest, d)
		}
	}
	if len(rest) == 0 {
		return keys, changed, nil
	}
	fallback, err := tx.UseFallbackKeys(rest, algorithm)
	for _, f := range fallback {
		keys = append(keys, f)
		if f.Used == 1 {
			changed = append(changed, store.DeviceID{User: f.User, Device: f.Device})
		}
	}
	return keys, changed, err
}

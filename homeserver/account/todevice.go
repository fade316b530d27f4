package account

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

const (
	// AllDevices stands for every device of a user in a send-to-device message.
	AllDevices id.DeviceID = "*"

	maxIdentifier = 255            // bytes of event types and transaction ids
	txnKept       = 24 * time.Hour // how long a repeated request is known
	pruneChunk    = 500            // rows deleted in one transaction
)

// ToDevice is a request to send messages to devices.
type ToDevice struct {
	Sender   id.UserID
	Device   id.DeviceID // that sends it
	Type     string
	TxnID    string
	Messages map[id.UserID]map[id.DeviceID]jsontext.Value
}

// SendToDevice stores messages until the devices fetch them. A request that the device made before is not done again.
// Messages to devices and users that do not exist are dropped.
// Spec: client-server API, "Send-to-Device messaging".
func (k *Keys) SendToDevice(ctx context.Context, req ToDevice) error {
	if len(req.Type) > maxIdentifier || len(req.TxnID) > maxIdentifier {
		return mxerr.InvalidParam(fmt.Sprintf("the event type and the transaction id may have at most %d bytes", maxIdentifier))
	}
	var local []string
	for _, user := range slices.Sorted(maps.Keys(req.Messages)) {
		ours, _, err := isLocal(k.ServerName, user)
		if err != nil {
			return err
		}
		for _, content := range req.Messages[user] {
			if content.Kind() != '{' {
				return mxerr.BadJSON("the messages to devices must be objects")
			}
		}
		if ours && len(req.Messages[user]) > 0 {
			local = append(local, string(user))
		}
	}
	now := k.Clock().UnixMilli()
	return k.Store.Write(ctx, func(tx *store.Tx) error {
		fresh, err := tx.NoteToDeviceTxn(req.Sender, req.Device, req.Type, req.TxnID, now)
		if err != nil || !fresh || len(local) == 0 {
			return err
		}
		// The lock is taken before the look at the devices, see Keys.DeviceDeleted.
		if err := tx.LockHead(); err != nil {
			return err
		}
		devices, err := tx.DevicesOf(local)
		if err != nil {
			return err
		}
		messages, err := req.address(devices)
		if err != nil {
			return err
		}
		return tx.SendToDevice(messages)
	})
}

// address makes a message for each device that the request names.
func (req *ToDevice) address(devices []store.DeviceID) ([]store.ToDeviceMessage, error) {
	var out []store.ToDeviceMessage
	for _, d := range devices {
		content, ok := req.Messages[d.User][d.Device]
		if !ok {
			if content, ok = req.Messages[d.User][AllDevices]; !ok {
				continue
			}
		}
		body, err := json.Marshal(struct {
			Type    string         `json:"type"`
			Sender  id.UserID      `json:"sender"`
			Content jsontext.Value `json:"content"`
		}{req.Type, req.Sender, content})
		if err != nil {
			return nil, fmt.Errorf("build a to-device event: %w", err)
		}
		out = append(out, store.ToDeviceMessage{DeviceID: d, Body: body})
	}
	return out, nil
}

// ToDeviceMessages reads up to limit events that wait for a device, after one position and up to another. lastPos is the
// position of the last one, or upto where no more wait.
func (k *Keys) ToDeviceMessages(ctx context.Context, user id.UserID, device id.DeviceID, after, upto int64, limit int) (events []jsontext.Value, lastPos int64, err error) {
	err = k.Store.Read(ctx, func(tx *store.Tx) error {
		messages, err := tx.ToDevice(user, device, after, upto, limit)
		for _, m := range messages {
			events = append(events, jsontext.Value(m.Body))
			lastPos = m.Pos
		}
		if len(messages) < limit {
			lastPos = upto
		}
		return err
	})
	return events, lastPos, err
}

// DeleteToDevice removes the messages up to a position, which the device has got. It writes only if there are any.
func (k *Keys) DeleteToDevice(ctx context.Context, user id.UserID, device id.DeviceID, upto int64) error {
	var some bool
	err := k.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		some, err = tx.AnyToDevice(user, device, upto)
		return err
	})
	if err != nil || !some {
		return err
	}
	return k.Store.Write(ctx, func(tx *store.Tx) error { return tx.DeleteToDevice(user, device, upto) })
}

// Run forgets old transaction ids from time to time, until ctx ends.
func (k *Keys) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := k.Sweep(ctx); err != nil && ctx.Err() == nil {
			k.Logger.Warn("forget old transaction ids", "error", err)
		}
	}
}

// Sweep forgets old transaction ids.
func (k *Keys) Sweep(ctx context.Context) error {
	before := k.Clock().Add(-txnKept).UnixMilli()
	for {
		var n int64
		err := k.Store.Write(ctx, func(tx *store.Tx) error {
			var err error
			n, err = tx.PruneToDeviceTxns(before, pruneChunk)
			return err
		})
		if err != nil || n < pruneChunk {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond): // let the chat's own writes through
		}
	}
}

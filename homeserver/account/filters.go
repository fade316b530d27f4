package account

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/filter"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

type filterKey struct {
	user id.UserID
	id   string
}

// filterIDBytes is how much of a definition's hash names it: enough that two never meet.
const filterIDBytes = 12

// CreateFilter stores a filter and returns its id. The same definition gives the same id. Errors: M_BAD_JSON, M_NOT_JSON.
// Spec: client-server API, "Filtering".
func (d *Data) CreateFilter(ctx context.Context, user id.UserID, definition []byte) (string, error) {
	if _, err := filter.Parse(definition); err != nil {
		return "", err
	}
	body := jsontext.Value(definition).Clone()
	if err := body.Canonicalize(); err != nil {
		return "", mxerr.NotJSON("the filter is not JSON")
	}
	hash := sha256.Sum256(body)
	filterID := base64.RawURLEncoding.EncodeToString(hash[:filterIDBytes])
	stored, err := d.filterBody(ctx, user, filterID)
	if err != nil || stored != nil {
		return filterID, err
	}
	return filterID, d.Store.Write(ctx, func(tx *store.Tx) error { return tx.InsertFilter(user, filterID, store.Content(body)) })
}

func (d *Data) filterBody(ctx context.Context, user id.UserID, filterID string) (store.Content, error) {
	var body store.Content
	err := d.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		body, err = tx.Filter(user, filterID)
		return err
	})
	return body, err
}

// FilterDefinition reads a filter's JSON; an unknown one is M_NOT_FOUND.
func (d *Data) FilterDefinition(ctx context.Context, user id.UserID, filterID string) ([]byte, error) {
	body, err := d.filterBody(ctx, user, filterID)
	if err == nil && body == nil {
		err = mxerr.NotFound("there is no filter of this id")
	}
	return body, err
}

// Filter is what the "filter" parameter of a request means: nothing, a filter's id, or a definition. Errors:
// M_INVALID_PARAM for an unknown id, M_BAD_JSON and M_NOT_JSON for a bad definition. The result is shared.
func (d *Data) Filter(ctx context.Context, user id.UserID, param string) (*filter.Filter, error) {
	switch {
	case param == "":
		return &filter.Filter{}, nil
	case strings.HasPrefix(strings.TrimLeft(param, " \t\r\n"), "{"):
		return filter.Parse([]byte(param))
	}
	return d.filters.get(ctx, filterKey{user, param}, func(ctx context.Context) (*filter.Filter, error) {
		body, err := d.filterBody(ctx, user, param)
		if err != nil {
			return nil, err
		}
		if body == nil {
			return nil, mxerr.InvalidParam("there is no filter of this id")
		}
		return filter.Parse(body)
	})
}

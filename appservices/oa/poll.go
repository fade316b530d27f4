package oa

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/tidwall/gjson"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

const (
	pollTimeout = 30 * time.Second
	maxPoll     = 16 << 20 // bytes of an answer
	maxItems    = 10_000
)

// poll asks a system for its open approvals. Trouble is logged: the next poll comes anyway.
func (o *OA) poll(ctx context.Context, s *system) {
	if err := o.pollOnce(ctx, s); err != nil && ctx.Err() == nil {
		o.d.Logger.Warn("an OA system could not be asked for approvals", "system", s.ID, "error", err)
	}
}

func (o *OA) pollOnce(ctx context.Context, s *system) error {
	began := o.now()
	body, err := o.pollAnswer(ctx, s)
	if err != nil {
		return err
	}
	if !gjson.ValidBytes(body) {
		return fmt.Errorf("the answer is no JSON")
	}
	list := gjson.ParseBytes(body)
	if s.Poll.Items != "" {
		list = list.Get(s.Poll.Items)
	}
	if !list.IsArray() {
		return fmt.Errorf("the answer has no list at %q", s.Poll.Items)
	}
	items := list.Array()
	if len(items) > maxItems {
		return fmt.Errorf("the answer has %d approvals; %d at most are read", len(items), maxItems)
	}
	there := map[string]bool{}
	for i, item := range items {
		req := s.Poll.Paths.read(item)
		there[req.ID] = true
		row, err := o.build(ctx, s, &req)
		if err == nil {
			row.Polled = true
			_, _, err = o.put(ctx, s, row)
		}
		if e := mxerr.As(err); e != nil && e.Extra["status"] == nil { // not merely decided by now
			o.d.Logger.Warn("an approval of an OA system cannot be taken", "system", s.ID, "item", i, "id", req.ID, "error", e.Message)
		} else if err != nil && e == nil {
			return err
		}
	}
	if !s.Poll.Complete {
		return nil
	}
	var open []string
	err = o.d.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
		open, err = tx.OAOpenPolled(s.ID, began)
		return err
	})
	for _, externalID := range open {
		if err != nil {
			return err
		}
		if !there[externalID] {
			err = o.goneThere(ctx, s, externalID)
		}
	}
	return err
}

// goneThere ends what the OA system does not list any more: it was decided or withdrawn there.
func (o *OA) goneThere(ctx context.Context, s *system, externalID string) error {
	t, _, err := o.findBy(ctx, func(tx *store.Tx) (store.OATask, bool, error) { return tx.OATaskOf(s.ID, externalID) })
	if err != nil {
		return err
	}
	name := s.Name
	if name == "" {
		name = s.ID
	}
	_, err = o.decide(ctx, decision{task: t.NID, name: name, status: store.OAWithdrawn, via: viaOA})
	if e := mxerr.As(err); e != nil && e.Extra["status"] != nil {
		return nil
	}
	return err
}

func (o *OA) pollAnswer(ctx context.Context, s *system) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	data := map[string]any{"now": o.now(), "time": formatTime(o.now()), "system": s.ID}
	target, err := expand(s.Poll.URL, data)
	if err != nil {
		return nil, err
	}
	text, err := expand(s.Poll.Body, data)
	if err != nil {
		return nil, err
	}
	method := s.Poll.Method
	if method == "" {
		method = http.MethodGet
	}
	req, err := http.NewRequestWithContext(ctx, method, target, strings.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("the address is not valid")
	}
	if text != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Accept", "application/json")
	if err := setHeaders(req, s.Poll.Headers, data); err != nil {
		return nil, err
	}
	resp, err := o.d.Client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s", transport(err))
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the answer was HTTP %d", resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxPoll+1))
	if err == nil && len(body) > maxPoll {
		err = fmt.Errorf("the answer has more than %d bytes", maxPoll)
	}
	return body, err
}

// read makes the request that the OA system did not make.
func (p *Paths) read(item gjson.Result) taskRequest {
	get := func(path string) string {
		if path == "" {
			return ""
		}
		return strings.ToValidUTF8(item.Get(path).String(), "�")
	}
	req := taskRequest{
		ID: get(p.ID), Title: get(p.Title), Summary: get(p.Summary), Assignee: get(p.Assignee), Applicant: get(p.Applicant), ApplicantName: get(p.ApplicantName),
		Template: get(p.Template),
	}
	if a := get(p.Amount); a != "" {
		if quoted, err := json.Marshal(a); err == nil {
			req.Amount = &amountRequest{Value: jsontext.Value(quoted), Currency: get(p.Currency)}
		}
	}
	if u := get(p.Link); u != "" {
		req.Links = []Link{{Title: "OA", URL: u}}
	}
	return req
}

package media

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"
	"golang.org/x/net/html/charset"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

const (
	previewFor      = 6 * time.Hour    // how long a preview is kept
	noPreviewFor    = 10 * time.Minute // and that there is none
	maxURL          = 2048
	maxProperties   = 40
	maxPropertyText = 1000 // characters
	maxRedirects    = 5
)

// preview handles GET /_matrix/client/v1/media/preview_url and its legacy twin.
func (m *Media) preview(w http.ResponseWriter, r *http.Request) error {
	if !m.Config.Previews || m.Client == nil {
		return mxerr.Unrecognized()
	}
	if _, err := web.QueryInt(r, "ts", 0, 0, 1<<53); err != nil { // a wish that a cache of hours cannot meet
		return err
	}
	raw := web.QueryString(r, "url")
	if raw == "" {
		return mxerr.MissingParam("query parameter 'url' is missing")
	}
	u, err := url.Parse(raw)
	if err != nil || len(raw) > maxURL || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return mxerr.InvalidParam("query parameter 'url' must be an http or https URL without a user name")
	}
	u.Fragment, u.RawFragment = "", ""
	body, err := m.previewOf(r.Context(), u, r.Header.Get("Accept-Language"))
	if err != nil {
		return err
	}
	if len(body) == 0 {
		// One answer for all that can go wrong: it must not tell what lies inside the network.
		return mxerr.New(http.StatusBadGateway, "M_UNKNOWN", "the page could not be previewed")
	}
	return web.WriteRaw(w, body)
}

// previewOf gives a preview from the cache or makes it; empty where the page cannot be read.
func (m *Media) previewOf(ctx context.Context, u *url.URL, language string) (body []byte, err error) {
	key := sha256.Sum256([]byte(u.String()))
	found := false
	err = m.Store.Read(ctx, func(tx *store.Tx) error {
		body, found, err = tx.URLPreview(key[:], time.Now().UnixMilli())
		return err
	})
	if err != nil || found {
		return body, err
	}
	ch := m.fetching.DoChan(u.String(), func() (any, error) {
		return m.makePreview(context.WithoutCancel(ctx), u, key[:], language)
	})
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case res := <-ch:
		if res.Err != nil {
			return nil, res.Err
		}
		return res.Val.([]byte), nil
	}
}

func (m *Media) makePreview(ctx context.Context, u *url.URL, key []byte, language string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, m.Config.PreviewTime)
	defer cancel()
	if err := m.pages.Acquire(ctx, 1); err != nil {
		return nil, mxerr.Unavailable("too many previews are being made, try again")
	}
	defer m.pages.Release(1)
	body := []byte{} // nothing to be had
	keep := noPreviewFor
	properties, err := m.readPage(ctx, u, language)
	if err != nil {
		m.Log.Debug("a URL was not previewed", "host", u.Host, "error", err)
	} else {
		keep = previewFor
		if body, err = json.Marshal(properties, json.Deterministic(true)); err != nil {
			return nil, err
		}
	}
	now := time.Now()
	err = m.Store.Write(context.WithoutCancel(ctx), func(tx *store.Tx) error {
		return tx.SetURLPreview(key, body, now.UnixMilli(), now.Add(keep).UnixMilli())
	})
	return body, err
}

// fetch gets a URL; the caller closes the body.
func (m *Media) fetch(ctx context.Context, u *url.URL, accept, language string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "Moothall (URL preview; +https://"+m.ServerName+")")
	req.Header.Set("Accept", accept)
	if language != "" {
		req.Header.Set("Accept-Language", language)
	}
	client := *m.Client
	client.CheckRedirect = func(req *http.Request, via []*http.Request) error {
		if len(via) > maxRedirects {
			return errors.New("too many redirects")
		}
		if req.URL.Scheme != "http" && req.URL.Scheme != "https" {
			return fmt.Errorf("redirect to scheme %q", req.URL.Scheme)
		}
		return nil
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errors.Join(fmt.Errorf("status %d", resp.StatusCode), resp.Body.Close())
	}
	return resp, nil
}

// readPage fetches a page and gives its OpenGraph properties, the image among our media.
func (m *Media) readPage(ctx context.Context, u *url.URL, language string) (map[string]any, error) {
	resp, err := m.fetch(ctx, u, "text/html,application/xhtml+xml,image/*;q=0.8", language)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	contentType := resp.Header.Get("Content-Type")
	mediaType, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return nil, fmt.Errorf("content type %q: %w", contentType, err)
	}
	out := make(map[string]any)
	switch {
	case strings.HasPrefix(mediaType, "image/"):
		if err := m.keepImage(ctx, resp, out); err != nil {
			return nil, err
		}
		return out, nil
	case mediaType == "text/html", mediaType == "application/xhtml+xml":
	default:
		return nil, fmt.Errorf("content type %q is not previewed", contentType)
	}
	utf8Body, err := charset.NewReader(io.LimitReader(resp.Body, m.Config.MaxPage), contentType)
	if err != nil {
		return nil, fmt.Errorf("character set: %w", err)
	}
	properties, image, embed := openGraph(utf8Body)
	for k, v := range properties {
		out[k] = v
	}
	if embed != "" && (image == "" || out["og:site_name"] == nil || out["og:description"] == nil) {
		described, err := m.addOEmbed(ctx, resp.Request.URL, embed, language, out)
		if err != nil {
			m.Log.Debug("the description of a page was not read", "host", u.Host, "error", err)
		}
		if image == "" {
			image = described
		}
	}
	if image != "" {
		// A page without its image is still a preview.
		if err := m.addImage(ctx, resp.Request.URL, image, language, out); err != nil {
			m.Log.Debug("the image of a preview was not read", "host", u.Host, "error", err)
		}
	}
	return out, nil
}

func (m *Media) addImage(ctx context.Context, page *url.URL, ref, language string, out map[string]any) error {
	u, err := page.Parse(ref)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || len(ref) > maxURL {
		return errors.New("the image's URL is not http or https")
	}
	resp, err := m.fetch(ctx, u, "image/*", language)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	return m.keepImage(ctx, resp, out)
}

// keepImage stores the image of a response as media of nobody and names it in the preview.
func (m *Media) keepImage(ctx context.Context, resp *http.Response, out map[string]any) error {
	content, err := io.ReadAll(io.LimitReader(resp.Body, m.Config.MaxPageImage+1))
	if err != nil {
		return err
	}
	if int64(len(content)) > m.Config.MaxPageImage {
		return errLimit
	}
	info, err := inspect(bytes.NewReader(content)) // what merely claims to be an image is not served
	if err != nil {
		return err
	}
	hash, size, err := m.keep(ctx, bytes.NewReader(content), m.Config.MaxPageImage)
	if err != nil {
		return err
	}
	f := store.Media{Origin: m.ServerName, ID: newMediaID(), Created: time.Now().UnixMilli(), Type: info.contentType(), Size: size, SHA256: hash}
	if err := m.Store.Write(ctx, func(tx *store.Tx) error { return tx.InsertMedia(f) }); err != nil {
		return err
	}
	out["og:image"] = "mxc://" + f.Origin + "/" + f.ID
	out["og:image:type"] = f.Type
	out["og:image:width"], out["og:image:height"] = info.orientedSize().X, info.orientedSize().Y
	out["matrix:image:size"] = size
	return nil
}

// openGraph reads the properties of a page, with title and description of plain HTML where it has none, and the URLs of its
// image and of its oEmbed description.
func openGraph(page io.Reader) (properties map[string]string, image, embed string) {
	properties = make(map[string]string)
	var title, description strings.Builder
	set := func(name, value string) {
		value = clip(value)
		if _, seen := properties[name]; !seen && value != "" && len(properties) < maxProperties {
			properties[name] = value
		}
	}
	z := html.NewTokenizer(page)
	z.SetMaxBuf(1 << 20)
	inTitle := false
	var twitterImage string
	for {
		switch z.Next() {
		case html.ErrorToken: // the end, or as far as the page goes
			set("og:title", title.String())
			set("og:description", description.String())
			if image == "" {
				image = twitterImage
			}
			return properties, image, embed
		case html.TextToken:
			if inTitle && title.Len() < 4*maxPropertyText {
				title.Write(z.Text())
			}
		case html.EndTagToken:
			if name, _ := z.TagName(); atom.Lookup(name) == atom.Title {
				inTitle = false
			}
		case html.StartTagToken, html.SelfClosingTagToken:
			name, more := z.TagName()
			switch atom.Lookup(name) {
			case atom.Title:
				inTitle = title.Len() == 0
			case atom.Link:
				if href := oEmbedLink(z, more); embed == "" {
					embed = href
				}
			case atom.Meta:
				name, content := metaTag(z, more)
				switch {
				case name == "og:image", name == "og:image:url", name == "og:image:secure_url":
					if image == "" {
						image = content
					}
				case strings.HasPrefix(name, "og:image"), strings.HasPrefix(name, "og:video"), strings.HasPrefix(name, "og:audio"):
					// of the remote files; the image's are set from our copy
				case name == "twitter:image":
					twitterImage = content
				case name == "description" && description.Len() == 0:
					description.WriteString(content)
				case strings.HasPrefix(name, "og:") && len(name) <= 64:
					set(name, content)
				}
			}
		}
	}
}

// metaTag reads name (or property) and content of a meta element.
func metaTag(z *html.Tokenizer, more bool) (name, content string) {
	for more {
		var k, v []byte
		k, v, more = z.TagAttr()
		switch string(k) {
		case "property":
			name = string(v)
		case "name":
			if name == "" {
				name = string(v)
			}
		case "content":
			content = string(v)
		}
	}
	return strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(content)
}

// clip makes one line of limited length.
func clip(s string) string {
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "\uFFFD")), " ")
	if utf8.RuneCountInString(s) > maxPropertyText {
		s = string([]rune(s)[:maxPropertyText-1]) + "…"
	}
	return strings.TrimSpace(strings.ReplaceAll(s, "\x00", ""))
}

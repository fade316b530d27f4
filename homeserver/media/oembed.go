package media

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/url"
	"strings"

	"github.com/tidwall/gjson"
	"golang.org/x/net/html"
)

// oEmbedType is the content type of descriptions by which pages that are programs (videos, posts) say what they show.
// Source: oembed.com, "Discovery".
const oEmbedType = "application/json+oembed"

// oEmbedLink reads the address of a page's description from a link element; "" where the element is for something else.
func oEmbedLink(z *html.Tokenizer, more bool) string {
	var rel, kind, href string
	for more {
		var k, v []byte
		k, v, more = z.TagAttr()
		switch string(k) {
		case "rel":
			rel = strings.ToLower(string(v))
		case "type":
			kind = strings.ToLower(strings.TrimSpace(string(v)))
		case "href":
			href = strings.TrimSpace(string(v))
		}
	}
	if kind != oEmbedType || !strings.Contains(" "+rel+" ", " alternate ") || len(href) > maxURL {
		return ""
	}
	return href
}

// addOEmbed fills what a page itself does not say from its description, and gives the address of an image. HTML in it is not
// looked at.
func (m *Media) addOEmbed(ctx context.Context, page *url.URL, ref, language string, out map[string]any) (image string, err error) {
	u, err := page.Parse(ref)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" {
		return "", errors.New("the description's URL is not http or https")
	}
	resp, err := m.fetch(ctx, u, oEmbedType+",application/json", language)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	mediaType, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || mediaType != "application/json" && mediaType != oEmbedType && mediaType != "text/javascript" {
		return "", fmt.Errorf("content type %q is no description", resp.Header.Get("Content-Type"))
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, m.Config.MaxPage))
	if err != nil {
		return "", err
	}
	if !gjson.ValidBytes(body) {
		return "", errors.New("the description is not JSON")
	}
	d := gjson.ParseBytes(body)
	for name, key := range map[string]string{"og:title": "title", "og:site_name": "provider_name", "og:description": "author_name"} {
		if value := clip(d.Get(key).Str); value != "" && out[name] == nil {
			out[name] = value
		}
	}
	if d.Get("type").Str == "photo" {
		return d.Get("url").Str, nil
	}
	return d.Get("thumbnail_url").Str, nil
}

package factor

import (
	"bytes"
	"crypto/subtle"
	"encoding/base32"
	"encoding/base64"
	"fmt"
	"html/template"
	"image"
	"image/draw"
	"image/png"
	"net/url"

	"github.com/boombuler/barcode"
	"github.com/boombuler/barcode/qr"
	"github.com/pquerna/otp"
	"github.com/pquerna/otp/hotp"

	"github.com/moothall/moothall/homeserver/store"
)

const (
	totpStep   = 30 // seconds; RFC 6238, section 4.1
	totpSkew   = 1  // steps to either side; RFC 6238, section 5.2
	totpDigits = otp.DigitsSix
	totpSecret = 20 // bytes; RFC 4226, section 4
	qrSize     = 280
	qrQuiet    = 4 // modules
)

var totpEncoding = base32.StdEncoding.WithPadding(base32.NoPadding)

// totpURL is what authenticator apps read from the QR code.
func totpURL(issuer, account, secret string) string {
	q := url.Values{"secret": {secret}, "issuer": {issuer}, "algorithm": {"SHA1"}, "digits": {"6"}, "period": {fmt.Sprint(totpStep)}}
	u := url.URL{Scheme: "otpauth", Host: "totp", Path: "/" + issuer + ":" + account}
	// Some apps do not read + as a space.
	return u.String() + "?" + string(bytes.ReplaceAll([]byte(q.Encode()), []byte("+"), []byte("%20")))
}

// qrCode draws text as a data: URL of a PNG.
func qrCode(text string) (template.URL, error) {
	code, err := qr.Encode(text, qr.M, qr.Auto)
	if err != nil {
		return "", fmt.Errorf("QR code: %w", err)
	}
	modules := code.Bounds().Dx()
	scale := max(1, qrSize/(modules+2*qrQuiet))
	if code, err = barcode.Scale(code, scale*modules, scale*modules); err != nil {
		return "", fmt.Errorf("QR code: %w", err)
	}
	// The white border belongs to the code (ISO 18004, section 5.3.8), on dark pages above all.
	border := scale * qrQuiet
	picture := image.NewGray(image.Rect(0, 0, code.Bounds().Dx()+2*border, code.Bounds().Dy()+2*border))
	draw.Draw(picture, picture.Bounds(), image.White, image.Point{}, draw.Src)
	draw.Draw(picture, code.Bounds().Add(image.Pt(border, border)), code, image.Point{}, draw.Src)
	var b bytes.Buffer
	if err := png.Encode(&b, picture); err != nil {
		return "", fmt.Errorf("QR code: %w", err)
	}
	return template.URL("data:image/png;base64," + base64.StdEncoding.EncodeToString(b.Bytes())), nil
}

// useTOTP checks a code against a factor and uses it up: the step it belongs to, and all before it, are good no more. Spec:
// RFC 6238, section 5.2: "The verifier MUST NOT accept the second attempt of the OTP after the successful validation".
func (f *Factors) useTOTP(tx *store.Tx, x store.Factor, code string) (bool, error) {
	if code = plain(code); len(code) != totpDigits.Length() {
		return false, nil
	}
	now := f.Clock().Unix() / totpStep
	match := int64(-1)
	for step := now - totpSkew; step <= now+totpSkew; step++ {
		want, err := hotp.GenerateCode(string(x.Secret), uint64(step))
		if err != nil {
			return false, fmt.Errorf("factor %s: %w", x.ID, err)
		}
		if subtle.ConstantTimeCompare([]byte(want), []byte(code)) == 1 {
			match = step
		}
	}
	if match <= x.Counter {
		return false, nil
	}
	return tx.UseFactor(x.ID, match, f.now())
}

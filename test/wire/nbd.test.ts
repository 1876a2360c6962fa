// NBD's bytes, written out from proto.md, against what the codec makes of them.

import t from 'tap';
import {
  decodeInfoRequest,
  decodeMetaContextRequest,
  decodeOptionHeader,
  decodeString,
  NbdRequestHeader,
} from '../../src/wire/nbd/decoder.js';
import {
  encodeExportNameReply,
  encodeGreeting,
  encodeInfoBlockSize,
  encodeInfoExport,
  encodeInfoText,
  encodeMetaContextReply,
  encodeOptionError,
  encodeOptionReply,
  encodeServerReply,
  writeBlockStatusHeader,
  writeDataChunkHeader,
  writeErrorChunk,
  writeSimpleReply,
} from '../../src/wire/nbd/encoder.js';
import { NBD_OPTION, NBD_OPTION_REPLY, NBD_ERROR } from '../../src/wire/nbd/constants.js';
import { infoData, metaData, option, request } from '../support/nbd-client.js';

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

t.test('handshake messages are the bytes of proto.md', async (t) => {
  t.equal(hex(encodeGreeting(3)), '4e42444d4147494349484156454f50540003');
  t.equal(
    hex(encodeOptionReply(NBD_OPTION.list, NBD_OPTION_REPLY.ack)),
    '0003e889045565a9' + '00000003' + '00000001' + '00000000',
  );
  t.equal(
    hex(encodeOptionError(NBD_OPTION.extendedHeaders, NBD_OPTION_REPLY.errUnsupported, 'no')),
    '0003e889045565a9' + '0000000b' + '80000001' + '00000002' + '6e6f',
  );
  t.equal(
    hex(encodeServerReply(NBD_OPTION.list, 'vol', 'a b')),
    '0003e889045565a9' + '00000003' + '00000002' + '0000000a' + '00000003' + '766f6c' + '612062',
  );
  t.equal(
    hex(encodeInfoExport(NBD_OPTION.go, 0x1_0000_0002, 0x0123)),
    '0003e889045565a9' +
      '00000007' +
      '00000003' +
      '0000000c' +
      '0000' +
      '0000000100000002' +
      '0123',
  );
  t.equal(
    hex(encodeInfoText(NBD_OPTION.info, 2, 'é')),
    '0003e889045565a9' + '00000006' + '00000003' + '00000004' + '0002' + 'c3a9',
  );
  t.equal(
    hex(encodeInfoBlockSize(NBD_OPTION.go, 1, 4096, 0x200_0000)),
    '0003e889045565a9' +
      ('00000007' + '00000003' + '0000000e' + '0003') +
      ('00000001' + '00001000' + '02000000'),
  );
  t.equal(
    hex(encodeMetaContextReply(NBD_OPTION.setMetaContext, 1, 'base:allocation')),
    '0003e889045565a9' +
      ('0000000a' + '00000004' + '00000013' + '00000001') +
      Buffer.from('base:allocation').toString('hex'),
  );
  t.equal(hex(encodeExportNameReply(4096, 1, false)), '0000000000001000' + '0001');
  t.equal(hex(encodeExportNameReply(4096, 1, true)), `00000000000010000001${'00'.repeat(124)}`);
});

t.test('transmission replies are the bytes of proto.md', async (t) => {
  const bytes = new Uint8Array(64).fill(0xee);
  const view = new DataView(bytes.buffer);
  const written = (length: number): string => {
    t.equal(bytes[4 + length], 0xee, 'nothing is written behind it');
    t.equal(bytes[3], 0xee, 'nothing is written before it');
    const text = hex(bytes.subarray(4, 4 + length));
    bytes.fill(0xee);
    return text;
  };
  writeSimpleReply(view, 4, NBD_ERROR.ENOSPC, 0xc0ffee00, 0x07);
  t.equal(written(16), '67446698' + '0000001c' + 'c0ffee0000000007');
  writeDataChunkHeader(view, 4, true, 0xc0ffee00, 7, 0x1_0000_1000, 512);
  t.equal(
    written(28),
    '668e33ef' + '0001' + '0001' + 'c0ffee0000000007' + '00000208' + '0000000100001000',
  );
  writeDataChunkHeader(view, 4, false, 0xc0ffee00, 7, 0, 512);
  t.equal(written(28).slice(8, 16), '00000001', 'only the last chunk carries DONE');
  writeBlockStatusHeader(view, 4, 0xc0ffee00, 7, 1, 16);
  t.equal(written(24), '668e33ef' + '0001' + '0005' + 'c0ffee0000000007' + '00000014' + '00000001');
  writeErrorChunk(view, 4, NBD_ERROR.EINVAL, 0xc0ffee00, 7);
  t.equal(
    written(26),
    '668e33ef' + '0001' + '8001' + 'c0ffee0000000007' + '00000006' + '00000016' + '0000',
  );
});

t.test('a request header is decoded field by field, and only with its magic', async (t) => {
  const header = new NbdRequestHeader();
  const bytes = Buffer.concat([
    Buffer.from([1, 2, 3]),
    request({ command: 6, flags: 0x12, cookie: 9, offset: 0x12345_6789abcdn, length: 77 }),
  ]);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  t.ok(header.decode(view, 3));
  t.match(
    { ...header },
    {
      flags: 0x12,
      command: 6,
      cookieHigh: 0xc0ffee00,
      cookieLow: 9,
      offsetHigh: 0x12345,
      offsetLow: 0x6789abcd,
      lengthBytes: 77,
    },
  );
  t.notOk(header.decode(view, 2));
});

t.test('option data is decoded whole or refused', async (t) => {
  t.same(decodeOptionHeader(option(7, Buffer.from('abc'))), {
    hasMagic: true,
    option: 7,
    dataBytes: 3,
  });
  t.notOk(decodeOptionHeader(Buffer.alloc(16)).hasMagic);

  const info = infoData('vol', [0, 3]);
  t.same(decodeInfoRequest(info), { exportName: 'vol', infoTypes: [0, 3] });
  const meta = metaData('vol', ['base:allocation', '']);
  t.same(decodeMetaContextRequest(meta), {
    exportName: 'vol',
    queries: ['base:allocation', ''],
  });
  for (let length = 0; length < info.byteLength; length++) {
    t.equal(decodeInfoRequest(info.subarray(0, length)), null, `info cut at ${length}`);
  }
  for (let length = 0; length < meta.byteLength; length++) {
    t.equal(decodeMetaContextRequest(meta.subarray(0, length)), null, `meta cut at ${length}`);
  }
  t.equal(decodeInfoRequest(Buffer.concat([info, Buffer.alloc(1)])), null);
  t.equal(decodeMetaContextRequest(Buffer.concat([meta, Buffer.alloc(1)])), null);
});

t.test('claimed lengths and counts are not believed', async (t) => {
  t.equal(decodeInfoRequest(Buffer.from('ffffffff' + '0000', 'hex')), null);
  t.equal(decodeMetaContextRequest(Buffer.from('00000000' + 'ffffffff', 'hex')), 'tooMany');
  t.equal(decodeMetaContextRequest(Buffer.from('00000000' + '00000001' + 'ffffff00', 'hex')), null);
});

t.test('a string is UTF-8 without NUL of at most 4096 bytes', async (t) => {
  t.equal(decodeString(Buffer.from('vol-é')), 'vol-é');
  t.equal(decodeString(Buffer.from([0xff])), null);
  t.equal(decodeString(Buffer.from('a\0b')), null);
  t.equal(decodeString(Buffer.alloc(4096, 'a'))?.length, 4096);
  t.equal(decodeString(Buffer.alloc(4097, 'a')), null);
});
